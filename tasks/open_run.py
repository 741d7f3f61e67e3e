"""Verb: start a run, or pick up what a crash left of it."""

from datetime import datetime

from prefect import task

from configs.loading import parse_config
from configs.rank_desk import RankDesk
from configs.workbench import Workbench
from infra.code_version import code_version
from infra.engine import task_options
from infra.object_store import ObjectStore, open_store
from infra.run_store import commit_record, read_records, write_adapter
from infra.tracking import open_tracker
from tasks.errors import BaseModelMismatchError, RunConflictError
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL, RoundKeys
from tasks.rounds.records import RoundRecord, RunSpec, rank_changes
from tasks.rounds.summary import RunHandle


@task(name="open-run", task_run_name="open run", **task_options())
def open_run(run: RunHandle, bench: Workbench, *, now: datetime) -> RoundRecord:
    """Freeze the run's description, write round 0, and return the last finished round.

    Args:
        run: The run.
        bench: Its data and model.
        now: When, for a new run's description.

    Returns:
        The record to go on from: round 0 for a new run.

    Raises:
        RunConflictError: The run exists with another config.
        BaseModelMismatchError: This machine holds other base weights than the run was started with.
    """
    store = open_store(run.store_url)
    _freeze(store, run, bench, now)
    tracker = open_tracker(run.tracking_uri, experiment=run.experiment, run_id=run.run_id)
    tracker.log_params(bench.flat_config())
    tracker.log_json("config.json", bench.frozen_config())
    tracker.set_tags({"rankweave.version": code_version(), "rankweave.base_sha256": bench.base.digest})
    records = read_records(store, run.run_id)
    return records[-1] if records else _write_initial(store, run, bench)


def _freeze(store: ObjectStore, run: RunHandle, bench: Workbench, now: datetime) -> None:
    spec = RunSpec(
        run_id=run.run_id,
        config=bench.frozen_config(),
        base_digest=bench.base.digest,
        code_version=code_version(),
        created_at=now.isoformat(timespec="seconds"),
    )
    frozen = commit_record(store, keys.run_spec(run.run_id), spec)
    # Read through today's form, so that a run from before a field existed gets that field's default.
    frozen_config = Workbench(parse_config(frozen.config, f"run {run.run_id}")).frozen_config()
    if frozen_config != spec.config:
        differing = sorted(name for name in spec.config if frozen_config.get(name) != spec.config[name])
        raise RunConflictError(
            f"run {run.run_id}",
            f"exists with another config; sections that differ: {', '.join(differing)}",
            remedy="resume it with its own config (`rankweave resume`), or start a new run",
        )
    if frozen.base_digest != spec.base_digest:
        raise BaseModelMismatchError(
            f"run {run.run_id}",
            "was started on another base model",
            got=spec.base_digest,
            expected=frozen.base_digest,
            remedy="restore the base weights or library versions it was started with",
        )


def _write_initial(store: ObjectStore, run: RunHandle, bench: Workbench) -> RoundRecord:
    round_keys = RoundKeys(run.run_id, 0)
    adapter = bench.initial_adapter()
    model = write_adapter(store, round_keys, adapter, bench.peft_config(adapter), model=GLOBAL)
    first = RankDesk(bench).first_ranks()
    record = RoundRecord(
        run_id=run.run_id,
        round_index=0,
        outcome="initial",
        models={GLOBAL: model},
        ranks=dict(first.ranks),
        rank_changes=rank_changes(bench.initial_ranks(), first.ranks, first.reasons),
    )
    return commit_record(store, round_keys.record, record)
