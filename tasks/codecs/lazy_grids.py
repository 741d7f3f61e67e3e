"""The quantisers of lazily uploaded gradients: one range for the whole message, a set or an adapted number of bits."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tasks.codecs.codec import Trip
from tasks.codecs.cursor import Cursor, refuse
from tasks.codecs.layout import Scale, Vector
from tasks.codecs.packing import Codes, read_codes, write_codes
from tasks.codecs.runs import Runs
from tasks.codecs.sums import norm

Grid = Literal["laq", "symmetric"]

_MAX_BITS = 16


@dataclass(frozen=True)
class Uniform:
    r"""Round every number to one of 2^b levels from -R to R.

    $R = \|v\|_\infty$, $\tau = 1 / (2^b - 1)$, $\psi = \lfloor (v + R) / (2 \tau R) + 1/2 \rfloor$,
    $\hat v = 2 \tau R \psi - R$: b bits per number, 32 for R and 8 for b.

    Args:
        bits: b, 1 to 8.

    Invariants:
        |v̂ - v| <= tau R. The grid holds no zero; a message of zeros alone is not quantised at all.

    References:
        Sun et al., "Communication-Efficient Distributed Learning via Lazily Aggregated Quantized Gradients", NeurIPS
        2019, arXiv 1909.07588; rule read in the authors' code [C], which divides by zero where v = 0.
    """

    bits: int
    scale: Scale = field(default="message", init=False)

    def write(self, values: Vector, runs: Runs, trip: Trip) -> bytes:
        """Write b, R and the levels."""
        del runs, trip
        return _written(values, self.bits, "laq")

    def read(self, cursor: Cursor, runs: Runs) -> Vector:
        """Read what `write` wrote."""
        return _read(cursor, runs.size, "laq")


@dataclass(frozen=True)
class Adaptive:
    r"""Let the shape of the message choose its bits.

    $b^* = \lfloor \log_2(R \sqrt d / \|v\|_2 + 1) \rfloor$, then one bit more while
    $\|\hat v - v\| > \rho \|v\|$: a flat message needs few bits, a spiky one more.

    Args:
        grid: "laq" as in `Uniform`, or "symmetric": $L = 2^{b-1} - 1$, $\hat v = (R / L)\,\mathrm{round}(v L / R)$,
            which holds zero and needs at least two bits.
        guard: rho, the largest relative error; None for the rule without it, which can stall.

    Invariants:
        With a guard below 1, the error of what is sent shrinks what is left by at least that factor (up to 16 bits).

    References:
        Zhao et al., "AQUILA: Communication Efficient Federated Learning with Adaptive Quantization", IEEE TMC 2024,
        arXiv 2308.00258. Only the abstract was read [A]; the rule for b* is recalled [R] and its error bound is no
        smaller than the message, so tracking a constant gradient stalls. The guard is ours.
    """

    grid: Grid = "symmetric"
    guard: float | None = 0.5
    scale: Scale = field(default="message", init=False)

    def write(self, values: Vector, runs: Runs, trip: Trip) -> bytes:
        """Write b, R and the levels."""
        del runs, trip
        return _written(values, self.bits_for(values), self.grid)

    def read(self, cursor: Cursor, runs: Runs) -> Vector:
        """Read what `write` wrote."""
        return _read(cursor, runs.size, self.grid)

    def bits_for(self, values: Vector) -> int:
        """Return the bits that this message takes.

        Args:
            values: The message.

        Returns:
            At least 1, or 2 on the symmetric grid; at most 16.
        """
        least = 1 if self.grid == "laq" else 2
        size, largest = norm(values), _largest(values)
        if not size:
            return least
        spread = largest * np.sqrt(values.size) / size
        bits = min(max(int(np.floor(np.log2(spread + 1.0))), least), _MAX_BITS)
        while self.guard is not None and bits < _MAX_BITS and self._error(values, bits) > self.guard * size:
            bits += 1
        return bits

    def _error(self, values: Vector, bits: int) -> float:
        largest = _largest(values)
        return norm(_to_values(_to_codes(values, largest, bits, self.grid), largest, bits, self.grid) - values)


def _largest(values: Vector) -> float:
    return float(np.abs(values).max(initial=0.0))


def _written(values: Vector, bits: int, grid: Grid) -> bytes:
    if not values.size:
        return b""
    largest = _largest(values)
    head = bytes([bits]) + np.float32(largest).astype("<f4").tobytes()
    return head if not largest else head + write_codes(_to_codes(values, largest, bits, grid), _levels(bits, grid))


def _read(cursor: Cursor, count: int, grid: Grid) -> Vector:
    if not count:
        return np.zeros(0, np.float32)
    bits, largest = cursor.number(1), float(cursor.array("<f4", 1)[0])
    if not (1 if grid == "laq" else 2) <= bits <= _MAX_BITS:
        refuse("is garbled", got=f"{bits} bits", expected=f"at most {_MAX_BITS}")
    if not largest:
        return np.zeros(count, np.float32)
    return _to_values(read_codes(cursor, count, _levels(bits, grid)), largest, bits, grid)


def _levels(bits: int, grid: Grid) -> int:
    return 2**bits if grid == "laq" else 2**bits - 1


def _to_codes(values: Vector, largest: float, bits: int, grid: Grid) -> Codes:
    most = _levels(bits, grid) - 1
    step = 2.0 * largest / most
    wide = values.astype(np.float64)
    codes = np.floor((wide + largest) / step + 0.5) if grid == "laq" else np.rint(wide / step) + most // 2
    return np.clip(codes, 0, most).astype(np.int64)


def _to_values(codes: Codes, largest: float, bits: int, grid: Grid) -> Vector:
    most = _levels(bits, grid) - 1
    step = 2.0 * largest / most
    return (step * codes - largest if grid == "laq" else step * (codes - most // 2)).astype(np.float32)
