"""Which of the numbers sent share one scale, once it is known which numbers are sent."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.codecs.layout import GROUP, Layout, Part, Scale


@dataclass(frozen=True, eq=False)
class Runs:
    """Consecutive numbers that share one scale.

    Args:
        lengths: How many numbers each run has, none 0.
        is_plain: Whether a run belongs to a tensor of fewer than two dimensions.
    """

    lengths: NDArray[np.int64]
    is_plain: NDArray[np.bool_]

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each run starts."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def size(self) -> int:
        """How many numbers all runs have."""
        return int(self.lengths.sum())


def runs_of(layout: Layout, scale: Scale, chosen: NDArray[np.int64] | None) -> Runs:
    """Return the runs among the numbers that are sent.

    Args:
        layout: Where all numbers stand.
        scale: What shares one scale. "slot" takes a row of a or a column of b, and groups of 64 of a dense tensor.
        chosen: Places of the numbers that are sent, rising; None for all.

    Returns:
        The runs, in the order of the numbers.
    """
    if scale == "message":
        size = layout.size if chosen is None else len(chosen)
        return Runs(np.full(min(size, 1), size, np.int64), np.zeros(min(size, 1), np.bool_))
    rows = [_rows(part, scale) for part in layout.parts]
    sizes = np.repeat([length for _, length in rows], [count for count, _ in rows]).astype(np.int64)
    if chosen is not None:
        sizes = np.diff(np.searchsorted(chosen, np.cumsum(np.append(0, sizes))))
    is_plain = np.repeat([len(part.shape) < 2 for part in layout.parts], [count for count, _ in rows])
    is_split = np.repeat([_is_split(part, scale) for part in layout.parts], [count for count, _ in rows])
    return _split(sizes.astype(np.int64), is_plain.astype(np.bool_), is_split.astype(np.bool_))


def _rows(part: Part, scale: Scale) -> tuple[int, int]:
    """Return how many rows a part has, and how long each is, before groups are cut."""
    if not part.size:
        return 0, 0
    count = 1
    if scale == "channel" and len(part.shape) >= 2:
        count = part.shape[0]
    elif scale == "slot" and part.role != "dense":
        count = part.shape[0 if part.role == "a" else 1]
    return count, part.size // count


def _is_split(part: Part, scale: Scale) -> bool:
    return scale == "group" or (scale == "slot" and part.role == "dense")


def _split(sizes: NDArray[np.int64], is_plain: NDArray[np.bool_], is_split: NDArray[np.bool_]) -> Runs:
    """Cut rows into groups where asked, and drop what is empty."""
    pieces = np.where(is_split, -(-sizes // GROUP), np.minimum(sizes, 1))
    lengths = np.repeat(np.where(is_split, GROUP, sizes), pieces)
    last = np.cumsum(pieces)[pieces > 0] - 1
    lengths[last] -= (pieces * np.where(is_split, GROUP, sizes) - sizes)[pieces > 0]
    return Runs(lengths, np.repeat(is_plain, pieces))
