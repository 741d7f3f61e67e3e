"""What a rank costs a round, and the largest rank that something still bears, as several schedulers count it."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from tasks.rank_schedulers.decision import RankCosts


def largest_fitting(top: int, fits: Callable[[int], bool]) -> int:
    """Find the largest number that fits, by bisection.

    Args:
        top: Largest number to try.
        fits: Number -> whether it fits; once one does not, no larger one does.

    Returns:
        From 1 to `top`; 0 where not even 1 fits.
    """
    return bisect_right(range(1, top + 1), 0, key=lambda number: int(not fits(number)))


def round_bytes(costs: RankCosts, rank: int) -> float:
    """Return what a client of a rank moves in a round, both ways and envelopes included [bytes]."""
    return costs.values(rank) * (costs.uplink_bytes + costs.downlink_bytes) + costs.overhead_bytes


def counted_once(costs: RankCosts) -> RankCosts:
    """Return the same costs, remembering the values of every rank that was asked for.

    Counting walks over all modules, and schedulers ask for few ranks on behalf of many clients.
    """
    return replace(costs, values=cache(costs.values))
