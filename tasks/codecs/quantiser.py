"""What turns the numbers of a message into bytes, and the plainest one: floating-point numbers."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.codecs.codec import Trip
from tasks.codecs.cursor import Cursor
from tasks.codecs.layout import Scale, Vector
from tasks.codecs.runs import Runs

_TOP = 15
"""Halves are scaled by a power of two until the largest lies just below 2^15: whatever a message's magnitude, its
largest number does not overflow, and what is 2^-30 of it keeps its 11 bits."""


class Quantiser(Protocol):
    """Numbers to bytes and back."""

    @property
    def scale(self) -> Scale:
        """What shares one scale."""
        ...

    def write(self, values: Vector, runs: Runs, trip: Trip) -> bytes:
        """Write numbers.

        Args:
            values: Finite, in float32.
            runs: Which of them share a scale.
            trip: The transfer, for random rounding.

        Returns:
            All that `read` needs beside the runs; nothing for no numbers.
        """
        ...

    def read(self, cursor: Cursor, runs: Runs) -> Vector:
        """Read what `write` wrote.

        Raises:
            AdapterFormatError: Ends too early, or garbled.
        """
        ...


@dataclass(frozen=True)
class Floats:
    """Numbers as 32-bit floats, or as 16-bit floats times one power of two.

    Args:
        bits: 32 or 16.
    """

    bits: int = 32
    scale: Scale = field(default="message", init=False)

    def write(self, values: Vector, runs: Runs, trip: Trip) -> bytes:
        """Write numbers; exact at 32 bits, rounded to nearest at 16, relative error at most 2^-11."""
        del runs, trip
        if self.bits == 32:
            return values.astype("<f4").tobytes()
        return write_halves(values.astype(np.float64))

    def read(self, cursor: Cursor, runs: Runs) -> Vector:
        """Read what `write` wrote."""
        if self.bits == 32:
            return cursor.array("<f4", runs.size).astype(np.float32)
        return read_halves(cursor, runs.size).astype(np.float32)


def write_halves(numbers: NDArray[np.float64], *, is_rounded_up: bool = False) -> bytes:
    """Write numbers as 16-bit floats times one power of two.

    Args:
        numbers: Finite.
        is_rounded_up: To the next half instead of the nearest, so that a step is never too small for its numbers.

    Returns:
        The power, and 2 bytes per number; nothing for no numbers.
    """
    if not numbers.size:
        return b""
    exponent = int(np.frexp(np.abs(numbers).max())[1])
    wide = np.ldexp(numbers, _TOP - exponent)
    halves = wide.astype(np.float16)
    if is_rounded_up:
        halves = np.where(halves.astype(np.float64) < wide, np.nextafter(halves, np.float16(np.inf)), halves)
    return exponent.to_bytes(2, "little", signed=True) + halves.astype("<f2").tobytes()


def read_halves(cursor: Cursor, count: int) -> NDArray[np.float64]:
    """Read what `write_halves` wrote.

    Args:
        cursor: Where the numbers start.
        count: How many there are.

    Returns:
        The numbers.

    Raises:
        AdapterFormatError: Ends too early.
    """
    if not count:
        return np.zeros(0)
    exponent = int.from_bytes(cursor.take(2), "little", signed=True)
    return np.ldexp(cursor.array("<f2", count).astype(np.float64), exponent - _TOP)
