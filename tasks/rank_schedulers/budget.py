"""Ranks that the run's budget of bytes can pay for, spread evenly over the rounds that are left."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.options import Option
from tasks.rank_schedulers.costs import counted_once, largest_fitting, round_bytes
from tasks.rank_schedulers.decision import Bound, RankCosts, RankSignals
from tasks.rounds.ledger import MEGABYTE

BUDGET_OPTIONS = (
    Option(
        name="budget_megabytes",
        description="what the whole run may move, uplink and downlink, 0 for no budget [MB]",
        default=0.0,
        most=1e12,
    ),
)


@dataclass(frozen=True)
class RoundBill:
    """What a round is expected to move at given ranks.

    Args:
        sizes: Ceiling -> clients that have it.
        drawn: Share of the clients that a round invites [fraction].
        costs: What a rank costs.
    """

    sizes: Mapping[int, int]
    drawn: float
    costs: RankCosts

    def at_cap(self, cap: int, num_raised: int = 0) -> float:
        """Return the expected bytes when every client has its ceiling or the cap, some of the capped one slot more.

        Args:
            cap: Largest rank of a client [slots].
            num_raised: Clients at `cap + 1` instead; their ceilings are above the cap.
        """
        bills = [num * round_bytes(self.costs, min(ceiling, cap)) for ceiling, num in self.sizes.items()]
        if num_raised:
            bills.append(num_raised * (round_bytes(self.costs, cap + 1) - round_bytes(self.costs, cap)))
        return self.drawn * math.fsum(bills)


def budget(signals: RankSignals, *, budget_megabytes: float) -> Mapping[str, Bound]:
    """Bound clients by one cap that the rest of the budget can pay for, and raise some by a slot with what is left.

    Every round left may move the same share of what is left. Clients are invited with equal chance, so a round is
    expected to move the cohort's share of what all clients together would. The cap is the largest under which that
    fits; then capped clients are raised by one slot each, in the order of their ids, while it still fits.

    Args:
        signals: What is known; ceilings, costs, rounds, cohort size and bytes spent count.
        budget_megabytes: What the whole run may move; 0 bounds nothing [MB].

    Returns:
        A bound for every client; none where the budget pays for all ceilings. Where it does not even pay for rank 1,
        everyone is bounded by 1 and the reason says what is missing.

    Invariants:
        A round's expected bytes stay within its share unless all ranks are 1. More budget never lowers a rank.

    References:
        Ours. The bytes are expected, not promised: which clients a round draws decides what it moves, and the rounds
        after make up for it. What other schedulers or limits take away is not given to anyone else.
    """
    if not budget_megabytes or not signals.ceilings:
        return {}
    left = budget_megabytes * MEGABYTE - signals.spent_bytes
    num_left = max(1, signals.num_rounds - signals.rounds_done)
    reason = f"{left / MEGABYTE:g} of {budget_megabytes:g} MB left, rounds left: {num_left}"
    return _bounds(signals, left / num_left, reason)


def _bounds(signals: RankSignals, share: float, reason: str) -> Mapping[str, Bound]:
    clients, highest = sorted(signals.ceilings), max(signals.ceilings.values())
    drawn = min(1.0, signals.cohort_size / len(clients))
    bill = RoundBill(Counter(signals.ceilings.values()), drawn, counted_once(signals.costs))
    cap = largest_fitting(highest, lambda rank: bill.at_cap(rank) <= share)
    if cap == highest:
        return {}
    if not cap:
        short = f"{(bill.at_cap(1) - share) / MEGABYTE:g} MB a round short of rank 1 for all"
        return dict.fromkeys(clients, Bound(1, f"{short}: {reason}"))
    raised = _raised(signals.ceilings, cap, bill, share)
    return {client: Bound(cap + 1 if client in raised else cap, reason) for client in clients}


def _raised(ceilings: Mapping[str, int], cap: int, bill: RoundBill, share: float) -> frozenset[str]:
    capped = [client for client in sorted(ceilings) if ceilings[client] > cap]
    num_raised = largest_fitting(len(capped), lambda num: bill.at_cap(cap, num) <= share)
    return frozenset(capped[:num_raised])
