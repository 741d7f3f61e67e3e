"""Lazy rules from the formulas, in plain floats."""

from collections.abc import Sequence


def laq_sends(
    innovation: float, errors: tuple[float, float], moved: Sequence[float], clients: int, share: float
) -> bool:
    """LAQ with D = 10, xi_d = 0.8 / D, alpha = 1; gradients are `share` times the deltas whose squares are given.

    Written for the gradients p delta, as the published rule has it, every square carries p squared.
    """
    threshold = 0.0
    for d in range(10):
        if d < len(moved):
            threshold += 0.8 / 10 * moved[d]
    threshold /= clients**2
    return share**2 * innovation >= threshold + 3 * share**2 * (errors[0] + errors[1])


def aquila_skips(innovation: float, error: float, last_moved: float, beta: float) -> bool:
    """AQUILA with alpha = 1."""
    return innovation + error <= beta * last_moved
