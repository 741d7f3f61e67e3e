"""Ranks that never move: what every other scheduler is compared with."""

from collections.abc import Mapping

from tasks.rank_schedulers.decision import Bound, RankSignals


def fixed(signals: RankSignals) -> Mapping[str, Bound]:
    """Bound nothing: every client keeps the rank that the config gives it.

    Args:
        signals: What is known at the end of the round.

    Returns:
        No bounds.

    References:
        The baseline of every paper on mixed ranks; as published.
    """
    del signals
    return {}
