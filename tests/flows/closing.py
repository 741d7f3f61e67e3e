"""Close a staged round as the flow does, and plan the one after."""

from dataclasses import replace
from typing import Any

from infra.run_store import commit_record
from tasks.aggregate_updates import aggregate_updates
from tasks.close_round import RoundResult, close_round
from tasks.plan_round import plan_round
from tasks.reschedule_ranks import reschedule_ranks
from tasks.rounds.steps import Judged, one_group
from tests.flows.staged import Staged


def judged_of(staged: Staged, collection) -> tuple[Judged, ...]:
    (group,) = one_group(collection).groups
    candidate = aggregate_updates.fn(staged.run, staged.plan, group, staged.initial, staged.bench)
    return (Judged(candidate, {"accuracy": 0.5}, version=staged.plan.round_index),)


def closed(staged: Staged, monkeypatch) -> Staged:
    """Close a round with what came in, as the flow does, and plan the next."""
    monkeypatch.setattr("tasks.close_round.open_tracker", lambda *_, **__: Silent())
    collection = commit_record(staged.store, staged.keys.collection, staged.look().close())
    judged = judged_of(staged, collection) if len(collection.accepted) >= staged.plan.quorum else ()
    ranks = reschedule_ranks.fn(staged.plan, collection, judged, staged.initial, staged.url, staged.bench)
    result = RoundResult(ranks, judged, {}, {})
    record = close_round.fn(staged.run, staged.plan, collection, staged.initial, staged.bench, result=result)
    planned = plan_round.fn(staged.run, record.round_index + 1, record, staged.bench)
    return replace(staged, initial=record, plan=planned.plan)


class Silent:
    """A tracker for tests that are not about tracking."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None
