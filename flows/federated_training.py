"""The run: start or go on, round after round, until all are done, the target is reached, or a budget or quorum lost."""

from datetime import UTC, datetime

from prefect import flow, tags
from prefect.runtime import flow_run

from configs.byte_desk import ByteDesk
from configs.experiment import ExperimentConfig
from configs.loading import parse_config
from configs.privacy_desk import PrivacyDesk
from configs.workbench import Workbench
from flows.federated_round import federated_round
from flows.fusing import fuse_here
from flows.run_page import RunPage
from infra.engine import name_this_flow_run, one_heartbeat
from infra.object_store import open_store
from infra.progress import Progress, tell
from infra.run_store import read_records, read_run
from infra.settings import Settings, read_settings
from tasks.errors import QuorumError, RankweaveError, RunCancelledError
from tasks.evaluation.metrics import HIGHER_IS_BETTER
from tasks.finish_run import abandon_run, finish_run
from tasks.open_run import open_run
from tasks.rounds.records import TRAINED, RoundRecord
from tasks.rounds.summary import BYTE_BUDGET, RunHandle, RunSummary
from tasks.training.spec import limited_threads


@flow(name="federated-training", persist_result=False)
def federated_training(config: ExperimentConfig) -> RunSummary:
    """Fine-tune one model across clients of unequal rank.

    Args:
        config: What to train, on which data, with whom and how.

    Returns:
        What came out.
    """
    settings = read_settings()
    config = _frozen_config(config, settings)
    run = _handle(config, settings)
    bench = Workbench(config).load()
    PrivacyDesk(bench).check()
    name_this_flow_run(run.run_id, {"rankweave", run.run_id})
    try:
        with one_heartbeat(), limited_threads(config.training.cpu_threads):
            return _train(run, bench)
    except RankweaveError as error:
        abandon_run(run, status="KILLED" if isinstance(error, RunCancelledError) else "FAILED")
        raise
    except BaseException:  # a signal, or a fault of ours: the run is marked, and goes on to whoever called
        abandon_run(run, status="KILLED")
        raise


def _train(run: RunHandle, bench: Workbench) -> RunSummary:
    config, store = bench.config, open_store(run.store_url)
    record = open_run(run, bench, now=datetime.now(UTC))
    done = sum(r.outcome in TRAINED for r in read_records(store, run.run_id))
    tell(Progress(run.run_id, record.round_index, config.rounds, "start", rounds_done=done, metrics=record.metrics))
    page = RunPage(run, config.rounds, config.metric)
    num_failed = 0
    while not (outcome := _outcome(record, bench)):
        with tags("rankweave", run.run_id):
            record = federated_round(run, record.round_index + 1, record, bench)
        done += record.outcome in TRAINED
        page.show_round(record, done)
        num_failed += record.outcome == "failed"
        if num_failed > config.cohort.max_failed_rounds:
            raise _quorum_lost(run, record, config)
    if config.training.keeps_personal and config.dispatch.mode == "inline":
        fuse_here(run.store_url, run.run_id, bench, bench.clients)
    summary = finish_run(run, bench, outcome=outcome)
    page.show_result(summary, read_records(store, run.run_id))
    return summary


def _frozen_config(config: ExperimentConfig, settings: Settings) -> ExperimentConfig:
    """A run that is resumed keeps the config it was started with, whatever else the form says."""
    if not config.resume_run:
        return config
    spec = read_run(open_store(settings.store_url), config.resume_run)
    return parse_config({**spec.config, "resume_run": config.resume_run}, f"run {config.resume_run}")


def _handle(config: ExperimentConfig, settings: Settings) -> RunHandle:
    # The flow run's own id: the same flow run started again after a crash finds the same federated run.
    run_id = config.resume_run or f"{config.name}-{str(flow_run.id)[:8]}"
    return RunHandle(run_id, settings.store_url, settings.mlflow_uri, experiment=config.name)


def _outcome(record: RoundRecord, bench: Workbench) -> str:
    """Say why no other round is to start after this record; empty where one is."""
    reasons = {
        "committed": record.rounds_done >= bench.config.rounds,
        "target_reached": _target_reached(record, bench.config),
        "privacy_budget": not PrivacyDesk(bench).allows(record.rounds_done + 1),
        BYTE_BUDGET: not ByteDesk(bench).allows(record),
    }
    return next((outcome for outcome, applies in reasons.items() if applies), "")


def _target_reached(record: RoundRecord, config: ExperimentConfig) -> bool:
    target, value = config.evaluation.target, record.metrics.get(config.metric)
    if not target or value is None:
        return False
    return value >= target if HIGHER_IS_BETTER[config.metric] else value <= target


def _quorum_lost(run: RunHandle, record: RoundRecord, config: ExperimentConfig) -> QuorumError:
    collection = record.collection
    refused = ", ".join(f"{r.client_id} ({r.reason})" for r in collection.refused) or "none"
    return QuorumError(
        f"run {run.run_id}, round {record.round_index}",
        f"quorum not met; missing: {', '.join(collection.missing) or 'none'}; refused: {refused}",
        got=f"{len(collection.accepted)} accepted",
        expected=f"at least {config.cohort.quorum}",
        remedy=f"the global adapter is unchanged; mend the clients, then `rankweave resume {run.run_id}`",
    )
