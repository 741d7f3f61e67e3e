"""Quantisers as their papers write them, one float at a time; nothing here is ours."""

import math
from collections.abc import Sequence


def laq(values: Sequence[float], bits: int) -> tuple[list[int], list[float]]:
    """LAQ: levels psi and what they stand for."""
    largest = max(abs(v) for v in values)
    tau = 1.0 / (2**bits - 1)
    levels = [math.floor((v + largest) / (2 * tau * largest) + 0.5) for v in values]
    return levels, [2 * tau * largest * level - largest for level in levels]


def aquila_bits(values: Sequence[float]) -> int:
    """AQUILA's number of bits, without a guard."""
    largest, length = max(abs(v) for v in values), math.sqrt(math.fsum(v * v for v in values))
    return max(1, math.floor(math.log2(largest * math.sqrt(len(values)) / length + 1.0)))


def affine(row: Sequence[float], bits: int) -> tuple[int, list[int], list[float]]:
    """FLoCoRA's quantiser of one channel with its faults mended: zero point, signed codes, numbers."""
    low, high = min(0.0, *row), max(0.0, *row)
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = (high - low) / (2**bits - 1) if high > low else 1.0
    zero = min(max(round(least - low / step), least), most)
    codes = [min(max(round(x / step) + zero, least), most) for x in row]
    return zero, codes, [step * (code - zero) for code in codes]


def entropy(density: float) -> float:
    """Binary entropy [bits]."""
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)
