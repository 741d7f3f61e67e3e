"""Ranks that never move: what every other scheduler is compared with."""

from tasks.rank_schedulers.decision import RankDecision, RankSignals


def fixed(signals: RankSignals) -> RankDecision:
    """Keep every client's rank.

    Args:
        signals: What is known at the end of the round.

    Returns:
        The ranks as they were, no changes.

    References:
        The baseline of every paper on mixed ranks; as published.
    """
    return RankDecision(dict(signals.ranks), {})
