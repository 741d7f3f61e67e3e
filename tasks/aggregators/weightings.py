"""Who counts how much: from what is known about each client's update to one weight per update.

A weighting knows nothing of tensors, an aggregator nothing of scores; any two combine.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.errors import ConfigError, EmptyCohortError, InvalidWeightError, UnknownNameError


@dataclass(frozen=True)
class Contribution:
    """What the server knows about one accepted update.

    Args:
        client_id: The client.
        num_examples: Examples it trained on [examples].
        update_norm: Frobenius norm of what it sends, as a product over all modules.
        quality: Its metric on its own validation share, higher is better; None if it keeps none.
    """

    client_id: str
    num_examples: int
    update_norm: float
    quality: float | None


Weighting = Callable[[Sequence[Contribution]], list[float]]


def by_examples(contributions: Sequence[Contribution]) -> list[float]:
    """Weigh clients by how many examples they trained on.

    Args:
        contributions: One per accepted update.

    Returns:
        One weight per contribution [examples].

    Raises:
        EmptyCohortError: No contributions.
        InvalidWeightError: A client trained on no examples.

    References:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
        https://arxiv.org/abs/1602.05629; as published.
    """
    _check_any(contributions)
    for one in contributions:
        if one.num_examples < 1:
            raise InvalidWeightError(
                f"client {one.client_id}",
                "cannot be weighed by its examples",
                got=f"{one.num_examples} examples",
                expected="at least 1",
                remedy="leave the client out, or use the weighting uniform",
            )
    return [float(one.num_examples) for one in contributions]


def uniform(contributions: Sequence[Contribution]) -> list[float]:
    """Weigh all clients alike.

    Args:
        contributions: One per accepted update.

    Returns:
        1.0 per contribution.

    Raises:
        EmptyCohortError: No contributions.
    """
    _check_any(contributions)
    return [1.0] * len(contributions)


def ranked(contributions: Sequence[Contribution]) -> list[float]:
    """Weigh clients by the rank of a score from their update's norm and their validation quality.

    score = quality * norm / max norm (1 in place of the ratio if all norms are zero). Clients are ranked 1..K by rising
    score, ties share their mean rank, and the rank is the weight: the best of K clients counts K times the worst.

    Args:
        contributions: One per accepted update, each with a quality.

    Returns:
        One weight per contribution, from 1 to K.

    Raises:
        EmptyCohortError: No contributions.
        ConfigError: A client has no validation quality.
        InvalidWeightError: A quality or norm is not a finite number, or a norm is negative.

    References:
        One reading of "ranking-based" in Chen et al., "RBLA", ICWS 2024, https://arxiv.org/abs/2408.08699. The paper's
        abstract speaks of LoRA ranks alone and its first author's public code has no score: there, as in `rbla` with
        `by_examples`, data volume is the weight. This other reading is kept as a choice; no published result covers it.
    """
    _check_any(contributions)
    largest = max(_checked_norm(one) for one in contributions)
    scores = [_checked_quality(one) * (one.update_norm / largest if largest else 1.0) for one in contributions]
    ordered = sorted(scores)
    # Equal scores fill places left+1 .. right; their mean rank is half the sum of the ends.
    return [(bisect_left(ordered, s) + 1 + bisect_right(ordered, s)) / 2 for s in scores]


WEIGHTINGS: dict[str, Weighting] = {
    "by_examples": by_examples,
    "uniform": uniform,
    "ranked": ranked,
}


def weighting(name: str) -> Weighting:
    """Look up a weighting.

    Args:
        name: As configs write it.

    Raises:
        UnknownNameError: No weighting has this name.
    """
    if name not in WEIGHTINGS:
        raise UnknownNameError("weighting", name, WEIGHTINGS)
    return WEIGHTINGS[name]


def _check_any(contributions: Sequence[Contribution]) -> None:
    if not contributions:
        raise EmptyCohortError("weighting", "there are no contributions to weigh")


def _checked_norm(one: Contribution) -> float:
    if not (math.isfinite(one.update_norm) and one.update_norm >= 0):
        raise InvalidWeightError(
            f"client {one.client_id}",
            "its update norm cannot be ranked",
            got=one.update_norm,
            expected="a finite number, 0 or more",
        )
    return one.update_norm


def _checked_quality(one: Contribution) -> float:
    if one.quality is None:
        raise ConfigError(
            f"client {one.client_id}",
            "the weighting ranked needs its validation quality",
            remedy="set a validation share (training.validation_frac above 0), or use the weighting by_examples",
        )
    if not math.isfinite(one.quality):
        raise InvalidWeightError(
            f"client {one.client_id}",
            "its validation quality cannot be ranked",
            got=one.quality,
            expected="a finite number",
        )
    return one.quality
