"""Verb: decide the ranks of the next round, each change with its reason."""

from collections.abc import Mapping

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from tasks.rank_schedulers import RankDecision, RankSignals, rank_scheduler
from tasks.rounds.records import Collection, RoundPlan, RoundRecord


@task(name="reschedule-ranks", task_run_name="reschedule after round {plan.round_index}", **task_options())
def reschedule_ranks(
    plan: RoundPlan,
    collection: Collection,
    metrics: Mapping[str, float],
    previous: RoundRecord,
    bench: Workbench,
) -> RankDecision:
    """Ask the run's rank scheduler.

    Args:
        plan: The round's plan.
        collection: What came in, with each client's measured speed.
        metrics: Evaluation of the new global adapter.
        previous: The record before, for current ranks and bytes.
        bench: The run.

    Returns:
        Ranks of all clients for the next round.
    """
    speeds = {
        a.client_id: {"examples_per_s": a.num_examples / a.training_s} for a in collection.accepted if a.training_s > 0
    }
    signals = RankSignals(
        round_index=plan.round_index,
        num_rounds=bench.config.rounds,
        ranks=previous.ranks,
        max_rank=bench.config.ranks.max_rank,
        capabilities=speeds,
        metrics=metrics,
        spent_bytes=previous.totals.get("uplink_bytes", 0) + previous.totals.get("downlink_bytes", 0),
    )
    return rank_scheduler(bench.config.ranks.scheduler)(signals)
