"""FLoCoRA's quantiser: one range per output channel, with zero on the grid."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tasks.codecs.codec import Trip
from tasks.codecs.cursor import Cursor
from tasks.codecs.layout import Scale, Vector
from tasks.codecs.packing import Codes, read_codes, write_codes
from tasks.codecs.runs import Runs
from tasks.errors import NonFiniteUpdateError

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    r"""Map every output channel's range to whole numbers.

    $s = (\max - \min) / (2^b - 1)$ over the channel and zero, $z = \mathrm{clamp}(\mathrm{round}(q_{min} - \min / s))$,
    $q = \mathrm{clamp}(\mathrm{round}(x / s) + z)$, $\hat x = s (q - z)$. Tensors of fewer than two dimensions are
    sent as 32-bit floats.

    Args:
        bits: b, 2 to 8.

    Invariants:
        |x̂ - x| <= s / 2, and up to s / 2 more at the ends of the range, from rounding z. Zeros and
        channels of one value come back exactly.

    References:
        Grativol Ribeiro et al., "FLoCoRA: Federated Learning Compression with Low-Rank Adaptation", EUSIPCO 2024,
        arXiv 2406.14082; rule read in the authors' code [C]. We differ where that code fails: zero is always in the
        range, z is rounded and clamped, so that codes are whole numbers, and a constant channel divides by nothing. The
        range is sent rather than s, so that its end comes back exactly, and z takes one byte rather than four.
    """

    bits: int
    scale: Scale = field(default="channel", init=False)

    def write(self, values: Vector, runs: Runs, trip: Trip) -> bytes:
        """Write plain numbers, then ranges and zero points, then codes."""
        del trip
        is_plain = np.repeat(runs.is_plain, runs.lengths)
        head = values[is_plain].astype("<f4").tobytes()
        coded, lengths = values[~is_plain].astype(np.float64), runs.lengths[~runs.is_plain]
        if not coded.size:
            return head
        starts = np.cumsum(lengths) - lengths
        low = np.minimum(np.minimum.reduceat(coded, starts), 0.0)
        spans = _rounded_up(np.maximum(np.maximum.reduceat(coded, starts), 0.0) - low)
        steps = self._steps(spans)
        most = 2**self.bits - 1
        zeros = np.clip(np.rint(-low / steps), 0, most)  # counted from the lowest code
        codes = np.clip(np.rint(coded / np.repeat(steps, lengths)) + np.repeat(zeros, lengths), 0, most)
        sides = spans.astype("<f4").tobytes() + zeros.astype("<u1").tobytes()
        return head + sides + write_codes(codes.astype(np.int64), most + 1)

    def read(self, cursor: Cursor, runs: Runs) -> Vector:
        """Read what `write` wrote."""
        is_plain = np.repeat(runs.is_plain, runs.lengths)
        values = np.zeros(runs.size, np.float32)
        values[is_plain] = cursor.array("<f4", int(is_plain.sum()))
        lengths = runs.lengths[~runs.is_plain]
        steps = self._steps(cursor.array("<f4", len(lengths)).astype(np.float64))
        zeros: Codes = cursor.array("<u1", len(lengths)).astype(np.int64)
        codes = read_codes(cursor, int(lengths.sum()), 2**self.bits)
        values[~is_plain] = np.repeat(steps, lengths) * (codes - np.repeat(zeros, lengths))
        return values

    def _steps(self, spans: Numbers) -> Numbers:
        return np.where(spans == 0, 1.0, spans / (2**self.bits - 1))


def _rounded_up(spans: Numbers) -> Numbers:
    """Round to the next float32 rather than the nearest: a range must hold its own ends."""
    near = spans.astype(np.float32)
    up = np.where(near < spans, np.nextafter(near, np.float32(np.inf)), near).astype(np.float64)
    if not np.isfinite(up).all():
        raise NonFiniteUpdateError(
            "update",
            "holds a channel whose range is beyond float32",
            remedy="use the codec fp32, lower the learning rate, or clip gradients",
        )
    return up
