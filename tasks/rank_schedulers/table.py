"""The table of rank schedulers: forms, validation and the law suite all read it."""

from collections.abc import Callable

from tasks.errors import UnknownNameError
from tasks.rank_schedulers.decision import RankDecision, RankSignals
from tasks.rank_schedulers.fixed import fixed

RankScheduler = Callable[[RankSignals], RankDecision]

RANK_SCHEDULERS: dict[str, RankScheduler] = {
    "fixed": fixed,
}


def rank_scheduler(name: str) -> RankScheduler:
    """Look up a rank scheduler.

    Raises:
        UnknownNameError: No scheduler has this name.
    """
    if name not in RANK_SCHEDULERS:
        raise UnknownNameError("rank scheduler", name, RANK_SCHEDULERS)
    return RANK_SCHEDULERS[name]
