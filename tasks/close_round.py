"""Verb: write the round's record, its commit point, and tell MLflow and whoever watches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import open_store
from infra.progress import Progress, tell
from infra.run_store import commit_record, read_json
from infra.tracking import open_tracker
from tasks.rank_schedulers import NextRanks
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import COUNTERFACTUALS, adapter_parameters, round_totals, saved_fraction
from tasks.rounds.records import (
    Collection,
    GlobalModel,
    Held,
    Outcome,
    RoundPlan,
    RoundRecord,
    encode,
    learned,
    rank_changes,
    sha256,
)
from tasks.rounds.steps import Judged, with_version
from tasks.rounds.summary import RunHandle


@dataclass(frozen=True)
class RoundResult:
    """What a round produced; a failed one only what it taught about ranks.

    Args:
        ranks: Ranks of the next round.
        judged: Its new global adapters, with their evaluations and versions.
        labels: Client id -> model name; empty when all clients share the one model.
        metrics: Figures of the whole round.
    """

    ranks: NextRanks
    judged: tuple[Judged, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@task(name="close-round", task_run_name="close round {plan.round_index}", **task_options())
def close_round(  # the record is where everything about a round comes together
    run: RunHandle,
    plan: RoundPlan,
    collection: Collection,
    previous: RoundRecord,
    bench: Workbench,
    *,
    result: RoundResult,
) -> RoundRecord:
    """Commit the round's record and log it.

    Args:
        run: The run.
        plan: The round's plan.
        collection: Who counted and who did not.
        previous: The record before; its adapter stays when the round failed.
        bench: The run.
        result: What the round produced.

    Returns:
        The record under the key.
    """
    committed, decision = bool(result.judged), result.ranks.decision
    changes = rank_changes(previous.ranks, decision.ranks, decision.reasons)
    record = RoundRecord(
        run_id=run.run_id,
        round_index=plan.round_index,
        outcome=_outcome(plan, collection, committed=committed),
        models=_models(plan, previous, result),
        labels=dict(result.labels) if committed else previous.labels,
        plan_sha256=sha256(encode(plan)),
        collection_sha256=sha256(encode(collection)),
        previous_sha256=sha256(encode(previous)),
        collection=collection,
        weights={client: w for one in result.judged for client, w in one.candidate.weights.items()},
        notes={client: note for one in result.judged for client, note in one.candidate.notes.items()},
        ranks=dict(decision.ranks),
        rounds_done=previous.rounds_done + committed,
        rank_changes=(*(() if committed else previous.rank_changes), *changes),
        capabilities=dict(result.ranks.capabilities),
        limits=dict(result.ranks.limits),
        held=_held(plan, previous, result),
        knowledge=learned(previous.knowledge, collection, plan.round_index),
        distances=result.judged[0].candidate.distances if committed else previous.distances,
        metrics=dict(result.metrics),
        totals=_totals(plan, collection, previous, bench),
    )
    # Logged before it is committed: a round that dies in between is logged once more, never not at all.
    tracker = open_tracker(run.tracking_uri, experiment=run.experiment, run_id=run.run_id)
    tracker.log_round(record.round_index, _mlflow_metrics(record, result))
    store, round_keys = open_store(run.store_url), RoundKeys(run.run_id, plan.round_index)
    for one in result.judged:
        model = one.candidate.group.model
        if found := read_json(store, round_keys.adapter(keys.DIAGNOSTICS, model)):
            tracker.log_json(f"diagnostics/round-{record.round_index:03d}-{model}.json", found)
    record = commit_record(store, round_keys.record, record)
    tell(_progress(record, plan, bench.config.rounds))
    return record


def _models(plan: RoundPlan, previous: RoundRecord, result: RoundResult) -> dict[str, GlobalModel]:
    """Return the new adapters, and those of clusters that sent nothing this round but still have clients."""
    made = {one.candidate.group.model: with_version(one) for one in result.judged}
    # A cluster that sent nothing goes on from its adapter at the ranks it has now; a failed round changes nothing.
    kept = previous.models | plan.cuts if made else previous.models
    if result.labels:
        kept = {name: model for name, model in kept.items() if name in set(result.labels.values())}
    return {**kept, **made}


def _held(plan: RoundPlan, previous: RoundRecord, result: RoundResult) -> dict[str, Held]:
    """Return what is held of lazy clients; not what was held on slots that a cut has since turned into others."""
    cut = plan.cuts if result.judged else {}
    kept = {client: held for client, held in previous.held.items() if held.model not in cut}
    return kept | {client: held for one in result.judged for client, held in one.candidate.held.items()}


def _outcome(plan: RoundPlan, collection: Collection, *, committed: bool) -> Outcome:
    if not committed:
        return "failed"
    return "committed" if len(collection.accepted) >= plan.cohort_size else "degraded"


def _totals(plan: RoundPlan, collection: Collection, previous: RoundRecord, bench: Workbench) -> dict[str, int]:
    dense, shapes = bench.dense_parameters, bench.module_shapes
    return round_totals(
        previous.totals,
        collection.ledger,
        full_parameters=bench.base.num_parameters,
        max_rank_parameters=adapter_parameters(shapes, bench.ceilings, dense),
        own_rank_parameters={
            client: adapter_parameters(shapes, bench.module_ranks(rank), dense)
            for client, rank in previous.ranks.items()
        },
    )


def _mlflow_metrics(record: RoundRecord, result: RoundResult) -> dict[str, float]:
    totals = {name: float(value) for name, value in record.totals.items()}
    saved = {f"saved_{name}_frac": saved_fraction(record.totals, name) for name in COUNTERFACTUALS}
    for direction in ("uplink", "downlink"):
        moved = (line.num_bytes for line in record.collection.ledger if line.direction == direction)
        totals[f"round_{direction}_bytes"] = float(sum(moved))
    counts = {
        "clients_accepted": float(len(record.collection.accepted)),
        "clients_refused": float(sum(r.round_index == record.round_index for r in record.collection.refused)),
        "clients_missing": float(len(record.collection.missing)),
    }
    trained = [acceptance.rank for acceptance in record.collection.accepted]
    if trained:
        counts |= {
            "rank_mean": fmean(trained),
            "rank_smallest": float(min(trained)),
            "rank_largest": float(max(trained)),
        }
    spent = {"aggregation_s": sum(one.candidate.seconds for one in result.judged)}
    return {**record.metrics, **totals, **saved, **counts, **spent}


def _progress(record: RoundRecord, plan: RoundPlan, num_rounds: int) -> Progress:
    return Progress(
        run_id=record.run_id,
        round_index=record.round_index,
        num_rounds=num_rounds,
        stage="round",
        clients_done=len(record.collection.accepted),
        clients=len(plan.invitations),
        outcome=record.outcome,
        metrics=record.metrics,
        moved_bytes=record.totals["uplink_bytes"] + record.totals["downlink_bytes"],
    )
