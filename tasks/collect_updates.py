"""Verb: wait for updates until quorum and grace, or the deadline, then fix which of them count."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.inbox import Inbox
from infra.object_store import open_store
from infra.progress import Progress, tell
from infra.run_store import commit_record, find_record
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Collection, RoundPlan

POLL_S = 1.0


class Dispatched(Protocol):
    """Client runs under way, however they were started."""

    def wait(self, timeout_s: float) -> None:
        """Return when something may have arrived, or after the timeout [s]."""

    def is_running(self) -> bool:
        """Tell whether more may still arrive."""
        ...

    def stop(self) -> None:
        """Ask what still runs to stop; do not wait for it."""


@dataclass(frozen=True)
class Patience:
    """How long a round waits.

    Args:
        deadline_s: At most this long [s].
        grace_s: At most this long once quorum is there [s].
        clock: Monotonic clock [s].
    """

    deadline_s: float
    grace_s: float
    clock: Callable[[], float] = time.monotonic


@task(name="collect-updates", task_run_name="collect round {plan.round_index}", **task_options())
def collect_updates(
    plan: RoundPlan, store_url: str, dispatched: Dispatched, patience: Patience, *, bench: Workbench
) -> Collection:
    """Collect a round's updates and fix which of them count.

    Waits until the cohort is full or every invited client has answered, until grace after quorum or the deadline has
    passed, or until nothing that was dispatched still runs. What comes later is recorded as late in the next round.
    What runs is not stopped here: this step may be tried again, and then waits for it.

    Args:
        plan: The round's plan.
        store_url: Where adapters are exchanged.
        dispatched: The client runs under way.
        patience: How long to wait.
        bench: The run, for what its updates leave out.

    Returns:
        The collection that an earlier try fixed, or the new one.
    """
    store = open_store(store_url)
    key = RoundKeys(plan.run_id, plan.round_index).collection
    if (existing := find_record(store, key, Collection)) is not None:
        return existing
    inbox = Inbox(store, plan, bench.exchange(plan))
    _wait(inbox, dispatched, patience, bench.config.rounds)
    return commit_record(store, key, inbox.close())


def _wait(inbox: Inbox, dispatched: Dispatched, patience: Patience, num_rounds: int) -> None:
    plan = inbox.plan
    end = patience.clock() + patience.deadline_s
    while True:
        may_bring_more = dispatched.is_running()  # asked before looking, so that nothing falls between
        inbox.look()
        answered, invited = inbox.num_answered, len(plan.invitations)
        tell(Progress(plan.run_id, plan.round_index, num_rounds, "client", clients_done=answered, clients=invited))
        is_full = len(inbox.accepted) >= plan.cohort_size or inbox.num_answered == len(plan.invitations)
        if is_full or not may_bring_more:
            return
        now = patience.clock()
        if len(inbox.accepted) >= plan.quorum:
            end = min(end, now + patience.grace_s)
        if now >= end:
            return
        dispatched.wait(min(POLL_S, end - now))
