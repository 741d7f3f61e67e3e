"""One round, from the plan to the record. Every step writes once and is adopted when the round is run again."""

from prefect import flow

from configs.privacy_desk import PrivacyDesk
from configs.workbench import Workbench
from flows.dispatch import dispatch_clients
from flows.run_page import show_diagnostics
from infra.engine import untagged_tasks
from infra.progress import Progress, tell
from tasks.aggregate_updates import aggregate_updates
from tasks.close_round import RoundResult, close_round
from tasks.collect_updates import Patience, collect_updates
from tasks.evaluate_adapter import evaluate_adapter
from tasks.group_updates import group_updates
from tasks.plan_round import plan_round
from tasks.publish_adapter import publish_adapter
from tasks.reschedule_ranks import reschedule_ranks
from tasks.rounds.records import RoundPlan, RoundRecord
from tasks.rounds.steps import Group, Judged, one_group, overall
from tasks.rounds.summary import RunHandle


@flow(name="federated-round", flow_run_name="round-{round_index:03d}", validate_parameters=False, persist_result=False)
def federated_round(run: RunHandle, round_index: int, previous: RoundRecord, bench: Workbench) -> RoundRecord:
    """Run one federated round and record how it ended.

    Args:
        run: The run.
        round_index: The round, from 1.
        previous: The record of the round before.
        bench: The run's data and model.

    Returns:
        The round's record.
    """
    with untagged_tasks():
        return _steps(run, round_index, previous, bench)


def _steps(run: RunHandle, round_index: int, previous: RoundRecord, bench: Workbench) -> RoundRecord:
    config, bench = bench.config, bench.stage(previous.rounds_done)
    tell(Progress(run.run_id, round_index, config.rounds, "plan"))
    planned = plan_round(run, round_index, previous, bench)
    plan = planned.plan
    dispatched = dispatch_clients(run, plan, planned.tickets, bench)
    patience = Patience(config.cohort.deadline_s, PrivacyDesk(bench).grace_s)
    try:
        collection = collect_updates(plan, run.store_url, dispatched, patience, bench=bench)
    finally:
        dispatched.stop()
    if len(collection.accepted) < plan.quorum:
        ranks = reschedule_ranks(plan, collection, (), previous, run.store_url, bench)
        return close_round(run, plan, collection, previous, bench, result=RoundResult(ranks))
    clustered = config.aggregation.clusters.enabled
    grouping = group_updates(plan, collection, previous, run.store_url, bench) if clustered else one_group(collection)
    judged = tuple(_judge(run, plan, group, previous.as_cut(plan), bench) for group in grouping.groups)
    ranks = reschedule_ranks(plan, collection, judged, previous, run.store_url, bench)
    figures = overall(judged) | PrivacyDesk(bench).figures(previous.rounds_done + 1)
    result = RoundResult(ranks, judged, grouping.labels, figures)
    record = close_round(run, plan, collection, previous, bench, result=result)
    show_diagnostics(record, judged, config.metric)
    return record


def _judge(run: RunHandle, plan: RoundPlan, group: Group, previous: RoundRecord, bench: Workbench) -> Judged:
    candidate = aggregate_updates(run, plan, group, previous, bench)
    metrics = evaluate_adapter(plan, candidate, run.store_url, bench)
    version = publish_adapter(run, plan, candidate, previous, bench)
    return Judged(candidate, metrics, version)
