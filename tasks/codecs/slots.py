"""Rank slots of a flat vector: where each slot's numbers stand, and how much its product changes.

Legend: slot r of a pair is row r of a with column r of b; a factor that is sent alone has rows or columns for slots.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tasks.codecs.layout import Layout, Part, Vector
from tasks.codecs.packing import Codes
from tasks.codecs.sums import norm, run_sums


@dataclass(frozen=True)
class Slot:
    """One rank slot.

    Args:
        ranges: (start, stop) of each of its factors' numbers, in a vector whose b is laid out column by column.
    """

    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return sum(stop - start for start, stop in self.ranges)


def slots_of(layout: Layout) -> list[Slot]:
    """Return every rank slot.

    Args:
        layout: Where numbers stand.

    Returns:
        Module by module, slot by slot.
    """
    bounds = list(pairwise(int(bound) for bound in layout.bounds))
    factors = [(part, start) for part, (start, _) in zip(layout.parts, bounds, strict=True) if part.role != "dense"]
    paired, count = len(layout.forms), 2 * len(layout.forms)
    groups = [factors[2 * i : 2 * i + 2] for i in range(paired)] + [[factor] for factor in factors[count:]]
    slots: list[Slot] = []
    for group in groups:
        rank = _rank(group[0][0])
        sizes = [(start, part.size // rank) for part, start in group]
        slots += [Slot(tuple((start + r * n, start + (r + 1) * n) for start, n in sizes)) for r in range(rank)]
    return slots


def chosen_slots(slots: list[Slot], change: Vector, base: Vector, keep: float) -> Codes:
    """Choose the slots whose product changes most for the numbers they take.

    Args:
        slots: All of them.
        change: What would be sent.
        base: What it changes.
        keep: Share of the slots' numbers to spend.

    Returns:
        Rising numbers of slots, at least one; scaling a row of a up and its column of b down changes no score.
    """
    sizes = np.array([slot.size for slot in slots])
    scores = np.array([change_of_product(slot, change, base) for slot in slots])
    order = np.argsort(-scores / sizes, kind="stable")
    spent = np.cumsum(sizes[order])
    count = max(int(np.searchsorted(spent, keep * sizes.sum(), side="right")), 1)
    return np.sort(order[:count])


def change_of_product(slot: Slot, change: Vector, base: Vector) -> float:
    r"""Return how far a slot's rank-1 product moves, squared.

    $\|b' a'^T - b a^T\|^2$ with $b' = b + d_b$, $a' = a + d_a$ is that of $d_b a'^T + b\, d_a^T$, which is
    $|d_b|^2 |a'|^2 + |b|^2 |d_a|^2 + 2 (d_b \cdot b)(a' \cdot d_a)$: no product is formed. A factor that is sent alone
    has the norm of its own change.
    """
    if len(slot.ranges) == 1:
        start, stop = slot.ranges[0]
        return norm(change[start:stop]) ** 2
    (a, b), (d_a, d_b) = (
        [vector[start:stop].astype(np.float64) for start, stop in slot.ranges] for vector in (base, change)
    )
    a = a + d_a
    mixed = 2.0 * _dot(d_b, b) * _dot(a, d_a)
    return max(_dot(d_b, d_b) * _dot(a, a) + _dot(b, b) * _dot(d_a, d_a) + mixed, 0.0)


def expanded(slots: list[Slot], chosen: Codes, layout: Layout) -> Codes:
    """Return the places of the chosen slots' numbers and of all dense tensors.

    Args:
        slots: All of them.
        chosen: Numbers of slots.
        layout: Where numbers stand.

    Returns:
        Rising places.
    """
    marks = np.zeros(layout.size, np.bool_)
    for part, (start, stop) in zip(layout.parts, pairwise(layout.bounds), strict=True):
        marks[start:stop] = part.role == "dense"
    for i in chosen:
        for start, stop in slots[i].ranges:
            marks[start:stop] = True
    return np.flatnonzero(marks)


def _rank(part: Part) -> int:
    return part.shape[0 if part.role == "a" else 1]


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    return float(run_sums(x * y, np.zeros(1, np.int64))[0]) if x.size else 0.0
