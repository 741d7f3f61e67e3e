"""Verb: sum up a run, point `challenger` at what it made, and leave its tables in MLflow."""

from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Literal

from prefect import get_run_logger, task

from configs.workbench import Workbench
from infra.booking import booked_fusions
from infra.engine import task_options
from infra.model_registry import CHALLENGER, open_registry, registered_name
from infra.object_store import ObjectStore, open_store
from infra.run_store import find_record, read_json, read_records
from infra.tracking import RunTracker, open_tracker
from tasks.data.picture import plot_partition
from tasks.errors import RegistryError
from tasks.evaluation.byte_picture import byte_picture
from tasks.evaluation.plots import coverage_and_energy, ladders_of, prefix_ladder
from tasks.evaluation.rank_picture import rank_picture, rank_table
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import LedgerLine
from tasks.rounds.records import FusionReport, RoundRecord
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
    for model, version in summary.models.items():
        if version:
            _name_version(run, registered_name(name, model), version, crown=bench.config.publishing.crown_first)
    _log_tables(tracker, open_store(run.store_url), records)
    _log_fusions(tracker, open_store(run.store_url), records[-1], bench)
    _log_pictures(tracker, open_store(run.store_url), records, bench)
    tracker.finish("FINISHED")
    return summary


def _name_version(run: RunHandle, name: str, version: int, *, crown: bool) -> None:
    registry = open_registry(run.tracking_uri)
    registry.set_alias(name, CHALLENGER, version)
    if crown:
        registry.crown_first(name, version, f"first version, from run {run.run_id}")


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


def _round_pictures(store: ObjectStore, records: list[RoundRecord], bench: Workbench) -> dict[str, bytes]:
    """Draw ranks by round and, as far as they were measured, the ladder of a few rounds, coverage and energy."""
    metric = bench.config.metric
    pictures = {"ranks.png": rank_picture(rank_table(records))} if len(records) > 1 else {}
    if ladders := ladders_of(records, metric, bench.config.ranks.max_rank):
        pictures["prefix-ladder.png"] = prefix_ladder(ladders, metric)
    last = records[-1]
    for name, model in last.models.items():
        key = RoundKeys(last.run_id, model.round_index).adapter(keys.DIAGNOSTICS, name)
        if found := read_json(store, key):
            pictures[f"coverage-and-energy-{name}.png"] = coverage_and_energy(found["coverage"], found["slot_energy"])
    return pictures


def _log_pictures(tracker: RunTracker, store: ObjectStore, records: list[RoundRecord], bench: Workbench) -> None:
    metric, labels = bench.config.metric, bench.raw.train.labels
    with TemporaryDirectory() as folder:
        quality, held = Path(folder, "quality-by-bytes.png"), Path(folder, "partition.png")
        quality.write_bytes(byte_picture(records, metric))
        tracker.log_figure_file(quality)
        for name, picture in _round_pictures(store, records, bench).items():
            path = Path(folder, name)
            path.write_bytes(picture)
            tracker.log_figure_file(path)
        if labels is not None:
            plot_partition(bench.partition, labels, bench.raw.label_names, held)
            tracker.log_figure_file(held)


def _log_fusions(tracker: RunTracker, store: ObjectStore, last: RoundRecord, bench: Workbench) -> None:
    """Log what clients reported of their fused adapters, and the mean over clients of each figure."""
    if not bench.config.training.keeps_personal:
        return
    found = (find_record(store, keys.fusion(last.run_id, client), FusionReport) for client in bench.clients)
    reports = [report for report in found if report is not None]
    tracker.log_table(
        "fusion.json",
        [
            {
                "client": report.client_id,
                "personal_weight": round(report.personal_weight, 4),
                "shared_weight": round(report.shared_weight, 4),
                **{name: round(value, 4) for name, value in report.metrics.items()},
            }
            for report in reports
        ],
    )
    if reports:
        names = sorted({name for report in reports for name in report.metrics})
        means = {f"client_{name}": fmean(r.metrics[name] for r in reports if name in r.metrics) for name in names}
        tracker.log_round(last.round_index, means)


def _log_tables(tracker: RunTracker, store: ObjectStore, records: list[RoundRecord]) -> None:
    clients, ledger = [], []
    for record in records[1:]:
        collection = record.collection
        clients += [
            {
                "round": record.round_index,
                "client": a.client_id,
                "answer": "accepted",
                "rank": a.rank,
                "lowered": a.lowered,
                "examples": a.num_examples,
                "weight": round(record.weights.get(a.client_id, 0.0), 4),
                "last_loss": a.metrics.get("last_loss", float("nan")),
                "training_s": round(a.training_s, 3),
                "model": record.model_of(a.client_id),
                "note": record.notes.get(a.client_id, ""),
            }
            for a in collection.accepted
        ]
        answers = [(r.round_index, r.client_id, r.reason) for r in collection.refused]
        answers += [(record.round_index, client, "missing") for client in collection.missing]
        clients += [
            {"round": index, "client": client, "answer": answer, "rank": records[index - 1].ranks[client]}
            for index, client, answer in answers
        ]
        ledger += [_ledger_row(line, record.round_index) for line in collection.ledger]
    ledger += [_ledger_row(line, records[-1].round_index) for line in booked_fusions(store, records[-1])]
    tracker.log_table("clients.json", clients)
    tracker.log_table("ledger.json", ledger)
    tracker.log_table("rank-changes.json", _rank_changes(records))


def _ledger_row(line: LedgerLine, booked_in: int) -> dict[str, object]:
    return {
        "round": line.round_index or booked_in,
        "client": line.client_id,
        "attempt": line.attempt,
        "direction": line.direction,
        "what": line.what,
        "bytes": line.num_bytes,
    }


def _rank_changes(records: list[RoundRecord]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for record in records:
        # A failed round repeats the changes of the one before.
        known = records[record.round_index - 1].rank_changes if record.outcome == "failed" else ()
        rows += [
            {"after_round": record.round_index, "client": c.client_id, "old": c.old, "new": c.new, "reason": c.reason}
            for c in record.rank_changes[len(known) :]
        ]
    return rows
