"""Slots that a mask leaves on, in plain floats; an adapter with the others set to zero."""

import math
from collections.abc import Sequence

Slots = Sequence[Sequence[float]]


def slots_on(a_slots: Slots, b_slots: Slots, sparsity: float) -> set[int]:
    """Return the strongest slots, as many as the share leaves, rounded half up and at least one."""
    count = max(1, math.floor((1 - sparsity) * len(a_slots) + 0.5))
    strengths = [
        math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        for a, b in zip(a_slots, b_slots, strict=True)
    ]
    return set(sorted(range(len(strengths)), key=lambda slot: (-strengths[slot], slot))[:count])
