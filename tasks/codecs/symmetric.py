"""Codes on a grid that is symmetric about zero and holds zero, one step per run of numbers."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.codecs.codec import Trip
from tasks.codecs.cursor import Cursor
from tasks.codecs.layout import Scale, Vector
from tasks.codecs.packing import read_codes, write_codes
from tasks.codecs.quantiser import read_halves, write_halves
from tasks.codecs.runs import Runs
from tasks.codecs.sums import run_sums


@dataclass(frozen=True)
class Symmetric:
    r"""Round every number to a whole multiple of its run's step.

    $L = 2^{b-1} - 1$, $s = \max|x| / L$ rounded up to a half, $q = \mathrm{round}(x / s) \in \{-L..L\}$,
    $\hat x = s q$. One bit has no zero: $\hat x = \mathrm{sign}(x) \cdot \mathrm{mean}|x|$, the sign of 0 being +.

    Args:
        bits: b, 1 to 8, or more where nothing is to be entropy-coded.
        scale: What shares one step.
        is_stochastic: Round up with the probability of the fraction, which makes the mean exact and the error twice
            as large. Each message draws its own fractions, so that clients' errors do not add up.

    Invariants:
        |x̂ - x| <= s / 2, or s if stochastic. Zero comes back as zero from two bits on.

    References:
        The convention of part 7.1 of our method notes; sign with the mean magnitude is the scaled sign compressor [R].
    """

    bits: int
    scale: Scale = "slot"
    is_stochastic: bool = False

    def write(self, values: Vector, runs: Runs, trip: Trip) -> bytes:
        """Write steps, then codes."""
        if not values.size:
            return b""
        sizes = np.abs(values).astype(np.float64)
        if self.bits == 1:
            signs = (values >= 0).astype(np.int64)
            return write_halves(run_sums(sizes, runs.starts) / runs.lengths) + write_codes(signs, 2)
        most = 2 ** (self.bits - 1) - 1
        head = write_halves(np.maximum.reduceat(sizes, runs.starts) / most, is_rounded_up=True)
        steps = np.repeat(read_halves(Cursor(head), len(runs.lengths)), runs.lengths)
        ratios = np.divide(values, steps, out=np.zeros(values.size), where=steps > 0)
        rounded = np.floor(ratios + _fractions(values, trip)) if self.is_stochastic else np.rint(ratios)
        codes = np.clip(rounded, -most, most).astype(np.int64) + most
        return head + write_codes(codes, 2 * most + 1)

    def read(self, cursor: Cursor, runs: Runs) -> Vector:
        """Read what `write` wrote."""
        steps = np.repeat(read_halves(cursor, len(runs.lengths)), runs.lengths)
        if self.bits == 1:
            return (steps * (2 * read_codes(cursor, runs.size, 2) - 1)).astype(np.float32)
        most = 2 ** (self.bits - 1) - 1
        return (steps * (read_codes(cursor, runs.size, 2 * most + 1) - most)).astype(np.float32)


def _fractions(values: Vector, trip: Trip) -> NDArray[np.float64]:
    """Draw numbers in [0, 1) from the round's seed and the message; only the sender needs them."""
    key = hashlib.sha256(f"rounding/{trip.seed}/".encode() + values.astype("<f4").tobytes()).digest()
    return np.frombuffer(hashlib.shake_256(key).digest(4 * values.size), "<u4") / 2.0**32
