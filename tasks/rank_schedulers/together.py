"""Several schedulers at once: each bounds a client's rank, and the smallest bound holds."""

from collections.abc import Mapping, Sequence

from tasks.rank_schedulers.decision import Bound, RankDecision, RankSignals

MEMORY = "memory"
CEILING = "config"


def decide(signals: RankSignals, proposals: Sequence[tuple[str, Mapping[str, Bound]]]) -> RankDecision:
    """Give every client the largest rank that nothing speaks against.

    Args:
        signals: What is known.
        proposals: (scheduler's name, its bounds), in the order of the config: of equal bounds the first is named.

    Returns:
        Ranks of all clients, from 1 to each one's ceiling; a reason for every rank that changes.
    """
    ranks, reasons = {}, {}
    for client, before in signals.ranks.items():
        rank, reason = _smallest(client, signals, proposals)
        ranks[client] = rank
        if rank != before:
            reasons[client] = reason
    return RankDecision(ranks, reasons)


def _smallest(
    client: str, signals: RankSignals, proposals: Sequence[tuple[str, Mapping[str, Bound]]]
) -> tuple[int, str]:
    rank, reason = signals.ceilings[client], f"{CEILING}: its share of the largest rank"
    limit = signals.limits.get(client)
    if limit is not None and 0 < limit.memory_rank < rank:
        rank, reason = limit.memory_rank, f"{MEMORY}: no larger rank fitted when it trained"
    for name, bounds in proposals:
        bound = bounds.get(client)
        if bound is not None and bound.rank < rank:
            rank, reason = max(1, bound.rank), f"{name}: {bound.reason}"
    return rank, reason
