"""Which numbers of an update are sent: all, the largest, whole rank slots, or those whose turn it is."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.codecs.codec import Trip
from tasks.codecs.cursor import Cursor, refuse
from tasks.codecs.layout import Layout, Vector
from tasks.codecs.packing import Codes
from tasks.codecs.positions import read_positions, write_positions
from tasks.codecs.slots import chosen_slots, expanded, slots_of

Way = Literal["all", "top", "ranks", "shared", "rotating"]
PICKING: tuple[Way, ...] = ("top", "ranks")
"""The ways in which a client's own numbers decide, so that places are sent and tell about its data."""


@dataclass(frozen=True)
class Selection:
    r"""A way to choose numbers.

    - "all": every number.
    - "top": the $k = \max(1, \lfloor p n \rfloor)$ largest magnitudes of the message, ties by place, never a zero.
    - "ranks": whole rank slots, a row of a with its column of b, by how much the slot's product changes per number
      sent, until p of the slots' numbers are spent, at least one; dense tensors belong to no slot and are sent whole.
    - "shared": k places drawn from the round's seed, the same for every client.
    - "rotating": segment number (round mod S) of S = round(1 / p) equal ones, the same for every client.

    Args:
        way: One of these.
        keep: p, share of the numbers that is sent.

    References:
        Top-k of the change: FLASC, Kuo et al., arXiv 2406.05233, the authors' code [C]. Rotating segments: inspired by
        EcoLoRA, arXiv 2506.02001 [A], where clients of one round send different segments and a segment is sparse again.
    """

    way: Way = "all"
    keep: float = 1.0

    def choose(self, change: Vector, base: Vector, layout: Layout, trip: Trip) -> tuple[Codes | None, bytes]:
        """Choose what is sent.

        Args:
            change: What would be sent, all of it.
            base: What it changes; zeros where nothing is known.
            layout: Where numbers stand.
            trip: The transfer.

        Returns:
            Rising places, None for all of them; and the bytes that tell them to the other end.
        """
        if self.way == "top":
            places = largest(np.abs(change), self._count(layout.size))
            places = places[change[places] != 0]
            return places, write_positions(places, layout.size)
        if self.way == "ranks":
            slots = slots_of(layout)
            if not slots:
                return None, b""
            chosen = chosen_slots(slots, change, base, self.keep)
            return expanded(slots, chosen, layout), write_positions(chosen, len(slots))
        return self._known(layout, trip), b""

    def read(self, cursor: Cursor, layout: Layout, trip: Trip) -> Codes | None:
        """Return the places that `choose` chose.

        Args:
            cursor: Where the sender told them, if it did.
            layout: Where numbers stand.
            trip: The transfer.

        Returns:
            Rising places, None for all of them.

        Raises:
            AdapterFormatError: Ends too early, garbled, or more places than the codec sends.
        """
        if self.way == "top":
            places = read_positions(cursor, layout.size)
            if len(places) > self._count(layout.size):
                refuse("holds too many numbers", got=len(places), expected=f"at most {self._count(layout.size)}")
            return places
        if self.way == "ranks":
            slots = slots_of(layout)
            return expanded(slots, read_positions(cursor, len(slots)), layout) if slots else None
        return self._known(layout, trip)

    def _known(self, layout: Layout, trip: Trip) -> Codes | None:
        """Return the places that both ends know."""
        if self.way == "shared":
            return largest(_drawn(layout.size, trip), self._count(layout.size))
        if self.way == "rotating":
            segments = max(round(1.0 / self.keep), 1)
            turn = trip.round_index % segments
            return np.arange(layout.size * turn // segments, layout.size * (turn + 1) // segments)
        return None

    def _count(self, size: int) -> int:
        return min(max(int(self.keep * size), 1), size)


def largest(sizes: NDArray, count: int) -> Codes:
    """Return the places of the largest numbers.

    Args:
        sizes: Numbers, at least `count`.
        count: How many to return.

    Returns:
        Rising places; of equal numbers the first ones.
    """
    if count >= sizes.size:
        return np.arange(sizes.size)
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    above = np.flatnonzero(sizes > least)
    ties = np.flatnonzero(sizes == least)[: count - above.size]
    return np.sort(np.concatenate([above, ties]))


def _drawn(size: int, trip: Trip) -> NDArray[np.uint64]:
    """Draw one 64-bit number per place; a hash, because generators of libraries differ between their versions."""
    key = f"places/{trip.seed}/{trip.round_index}".encode()
    return np.frombuffer(hashlib.shake_256(key).digest(8 * size), "<u8")
