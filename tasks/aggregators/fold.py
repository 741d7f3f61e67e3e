"""What an aggregator is: a mergeable fold over updates. The contract only; the sums live beside it.

The numbers of a result depend on which client stood at which position, never on arrival order, on the number of
processes or on how the reduction tree was cut. Methods that factorise (products, norms of them) depend in their last
digits on how many threads the linear algebra uses, for layers of a few thousand inputs or outputs and more.
"""

import math
from typing import Protocol, Self

from tasks.adapters.lora import LoraAdapter
from tasks.errors import InvalidWeightError


class Fold(Protocol):
    """One aggregation in progress."""

    def add(self, position: int, update: LoraAdapter, weight: float) -> None:
        """Take in one client's update; the update is read, never written to or kept.

        Args:
            position: The client's place in sorted client order, from 0.
            update: Finite factors, at any scaling.
            weight: How much the client counts, > 0; only ratios matter.
        """
        ...

    def merge(self, other: Self) -> None:
        """Take over everything another fold of the same method has seen; the other must not be used again.

        Args:
            other: A fold over other positions.
        """
        ...

    def finish(self, previous: LoraAdapter | None) -> LoraAdapter:
        """Return the new global adapter, scaling 1; the fold must not be used again.

        Args:
            previous: The global adapter of the round before; what no client trained is kept from it.
        """
        ...


def check_weight(weight: float, subject: str) -> None:
    """Raise unless a weight can be averaged with.

    Args:
        weight: The client's weight.
        subject: Whom to name, e.g. "update 3".

    Raises:
        InvalidWeightError: The weight is zero, negative, NaN or infinite.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise InvalidWeightError(
            subject,
            "its weight cannot be averaged with",
            got=weight,
            expected="a finite number above 0",
            remedy="leave the client out, or give it a weight",
        )
