"""What is said about a run from outside: its handle while it runs, its summary when it has ended."""

from dataclasses import dataclass
from typing import Any

from tasks.rounds.ledger import saved_fraction
from tasks.rounds.records import TRAINED, Record, RoundRecord

BYTE_BUDGET = "byte_budget"
"""Outcome of a run that its budget of bytes ended; the command line has an exit code for it."""


@dataclass(frozen=True)
class RunHandle:
    """How a step finds its run again: names and addresses, no connections.

    Args:
        run_id: The run.
        store_url: Where adapters are exchanged.
        tracking_uri: Where MLflow is.
        experiment: The MLflow experiment.
    """

    run_id: str
    store_url: str
    tracking_uri: str
    experiment: str


class RunSummary(Record, frozen=True, kw_only=True):
    """A run as it ended; what `rankweave run --json` prints.

    Args:
        run_id: The run.
        outcome: "committed" when it did what was promised; "target_reached" when it stopped early because it was good;
            "privacy_budget" or "byte_budget" when another round would have spent more than it may.
        rounds: Trained rounds that were committed or degraded.
        metrics: Evaluation of the last global adapter.
        uplink_bytes: From clients [bytes].
        downlink_bytes: To clients [bytes].
        saved_fraction: Part of full fine-tuning's bytes that was not moved.
        saved_fraction_max_rank: Part of everyone-at-the-largest-rank's bytes that was not moved.
        model_name: Name in the registry.
        model_version: Its version there, 0 when none was published; of the largest cluster where there are several.
        adapter_sha256: Digest of its weights file.
        models: Model name -> version; one, unless clients were clustered.
        tracking_url: Where to look at the run.
        store_url: Where its objects lie.
    """

    run_id: str
    outcome: str
    rounds: int
    metrics: dict[str, float]
    uplink_bytes: int
    downlink_bytes: int
    saved_fraction: float
    saved_fraction_max_rank: float
    model_name: str
    model_version: int
    adapter_sha256: str
    models: dict[str, int]
    tracking_url: str
    store_url: str


def summarise(records: list[RoundRecord], *, outcome: str, **where: Any) -> RunSummary:
    """Sum up a run from its records.

    Args:
        records: All of them, round 0 first.
        outcome: How the run ended.
        where: The summary's remaining fields: model_name, tracking_url, store_url.
    """
    last = records[-1]
    trained = [record for record in records if record.outcome in TRAINED]
    return RunSummary(
        run_id=last.run_id,
        outcome=outcome,
        rounds=len(trained),
        metrics=trained[-1].metrics if trained else {},
        uplink_bytes=last.totals.get("uplink_bytes", 0),
        downlink_bytes=last.totals.get("downlink_bytes", 0),
        saved_fraction=round(saved_fraction(last.totals, "full_fine_tuning"), 4),
        saved_fraction_max_rank=round(saved_fraction(last.totals, "max_rank"), 4),
        model_version=last.models[last.main].version,
        adapter_sha256=last.models[last.main].sha256,
        models={name: model.version for name, model in last.models.items()},
        **where,
    )
