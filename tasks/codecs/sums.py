"""Sums that come out the same on every machine: numbers become integers first, so that their order cannot matter."""

import numpy as np
from numpy.typing import NDArray


def run_sums(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum consecutive runs of numbers, independently of the order in which the machine adds.

    Args:
        values: Finite numbers.
        starts: Where each run starts; the first is 0, and no run is empty.

    Returns:
        One sum per run, off by at most 2^-(61 - log2(n)) of the largest number of all, for each number in the run.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not largest:
        return np.zeros(len(starts))
    room = 62 - int(values.size).bit_length()  # n numbers below 2^room sum to less than 2^62
    shift = room - int(np.frexp(largest)[1])
    whole = np.rint(np.ldexp(values, shift)).astype(np.int64)
    return np.ldexp(np.add.reduceat(whole, starts).astype(np.float64), -shift)


def norm(values: NDArray[np.float32]) -> float:
    """Return the Euclidean norm of a vector, the same on every machine."""
    if not values.size:
        return 0.0
    squares = np.square(values.astype(np.float64))
    return float(np.sqrt(run_sums(squares, np.zeros(1, np.int64))[0]))
