"""Surrogates the slow way: SAFARI's substitution itself, copies put in the places of missing clients."""

from collections.abc import Mapping, Sequence


def smoothed(distances: Sequence[float], kappa: float) -> float:
    """Return the moving average of what two clients showed, oldest first."""
    value = distances[0]
    for distance in distances[1:]:
        value = (1 - kappa) * value + kappa * distance
    return value


def mean_with_copies(
    updates: Mapping[str, float],
    weights: Mapping[str, float],
    stand_ins: Mapping[str, str],
    faded: Mapping[str, float],
) -> float:
    """Average received updates and copies of those that stand in; `faded` is what a missing client's weight became."""
    top = bottom = 0.0
    for client, update in updates.items():
        top += weights[client] * update
        bottom += weights[client]
    for client, surrogate in stand_ins.items():
        if surrogate:
            top += faded[client] * updates[surrogate]
            bottom += faded[client]
    return top / bottom
