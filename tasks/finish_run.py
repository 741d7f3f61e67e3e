"""Verb: sum up a run, point `challenger` at what it made, and leave its tables in MLflow."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from prefect import get_run_logger, task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.model_registry import CHALLENGER, open_registry
from infra.object_store import open_store
from infra.run_store import read_records
from infra.tracking import RunTracker, open_tracker
from tasks.data.picture import plot_partition
from tasks.errors import RegistryError
from tasks.evaluation.plots import curve, quality_by_bytes
from tasks.rounds.records import RoundRecord
from tasks.rounds.summary import RunHandle, RunSummary, summarise


@task(name="finish-run", task_run_name="finish run", **task_options())
def finish_run(run: RunHandle, bench: Workbench, *, outcome: str) -> RunSummary:
    """Write down what came out.

    Args:
        run: The run.
        bench: Its config.
        outcome: How it ended.

    Returns:
        The summary.
    """
    records = read_records(open_store(run.store_url), run.run_id)
    tracker = open_tracker(run.tracking_uri, experiment=run.experiment, run_id=run.run_id)
    name = bench.config.model_name
    summary = summarise(records, outcome=outcome, model_name=name, tracking_url=tracker.ui_url, store_url=run.store_url)
    if summary.model_version:
        registry = open_registry(run.tracking_uri)
        registry.set_alias(name, CHALLENGER, summary.model_version)
        if bench.config.publishing.crown_first:
            registry.crown_first(name, summary.model_version, f"first version, from run {run.run_id}")
    _log_tables(tracker, records)
    _log_pictures(tracker, records, bench)
    tracker.finish("FINISHED")
    return summary


def abandon_run(run: RunHandle, *, status: Literal["FAILED", "KILLED"]) -> None:
    """Mark a run that did not reach its end; its records stay and it can be resumed.

    Not a task: it runs while an error is on its way out, and must neither wait long nor hide that error.

    Args:
        run: The run.
        status: FAILED for an error, KILLED for a person or a signal.
    """
    try:
        open_tracker(run.tracking_uri, experiment=run.experiment, run_id=run.run_id).finish(status)
    except RegistryError as error:
        get_run_logger().warning("run %s could not be marked %s: %s", run.run_id, status, error)


def _log_pictures(tracker: RunTracker, records: list[RoundRecord], bench: Workbench) -> None:
    metric, labels = bench.config.metric, bench.raw.train.labels
    with TemporaryDirectory() as folder:
        quality, held = Path(folder, "quality-by-bytes.png"), Path(folder, "partition.png")
        quality.write_bytes(quality_by_bytes({tracker.run_id: curve(records, metric)}, metric))
        tracker.log_figure_file(quality)
        if labels is not None:
            plot_partition(bench.partition, labels, bench.raw.label_names, held)
            tracker.log_figure_file(held)


def _log_tables(tracker: RunTracker, records: list[RoundRecord]) -> None:
    clients, ledger = [], []
    for record in records[1:]:
        collection = record.collection
        clients += [
            {
                "round": record.round_index,
                "client": a.client_id,
                "answer": "accepted",
                "rank": a.rank,
                "examples": a.num_examples,
                "weight": round(record.weights.get(a.client_id, 0.0), 4),
                "last_loss": a.metrics.get("last_loss", float("nan")),
                "training_s": round(a.training_s, 3),
            }
            for a in collection.accepted
        ]
        answers = [(r.round_index, r.client_id, r.reason) for r in collection.refused]
        answers += [(record.round_index, client, "missing") for client in collection.missing]
        clients += [
            {"round": index, "client": client, "answer": answer, "rank": records[index - 1].ranks[client]}
            for index, client, answer in answers
        ]
        ledger += [
            {
                "round": record.round_index,
                "client": line.client_id,
                "attempt": line.attempt,
                "direction": line.direction,
                "what": line.what,
                "bytes": line.num_bytes,
            }
            for line in collection.ledger
        ]
    tracker.log_table("clients.json", clients)
    tracker.log_table("ledger.json", ledger)
