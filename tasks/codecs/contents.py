"""An adapter as a codec sees it: a layout, one vector of numbers, and counters."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter
from tasks.codecs.casting import cast
from tasks.codecs.cursor import Cursor
from tasks.codecs.frame import digest_of
from tasks.codecs.header import to_header
from tasks.codecs.layout import Layout, Scale, Vector, flatten, layout_of


@dataclass(frozen=True, eq=False)
class Contents:
    """What an adapter holds.

    Args:
        layout: Where the numbers stand.
        numbers: The vector, scaling folded.
        counters: Tensors of whole numbers.
    """

    layout: Layout
    numbers: Vector
    counters: dict[str, torch.Tensor]

    @classmethod
    def of(cls, adapter: LoraAdapter, scale: Scale) -> Self:
        """Take an adapter apart.

        Args:
            adapter: Any adapter.
            scale: What shares one scale.

        Returns:
            Its contents; nothing is shared with its numbers.

        Raises:
            NonFiniteUpdateError: A value is not finite, or beyond float32's range.
        """
        small = cast(adapter, torch.float32)
        counters = {name: t.detach().cpu() for name, t in small.dense.items() if not t.is_floating_point()}
        return cls(layout_of(small), flatten(small, scale), counters)

    def digest(self, *, is_delta: bool) -> bytes:
        """Return the short digest by which two ends find that they hold the same.

        Args:
            is_delta: The numbers count too, not only names and shapes.
        """
        return digest_of(to_header(self.layout), self.numbers.astype("<f4").tobytes() if is_delta else b"")


def write_counters(counters: dict[str, torch.Tensor]) -> bytes:
    """Write tensors of whole numbers, in the order of their names, as they are."""
    return b"".join(counters[name].contiguous().numpy().tobytes() for name in sorted(counters))


def read_counters(cursor: Cursor, layout: Layout) -> dict[str, torch.Tensor]:
    """Read what `write_counters` wrote.

    Args:
        cursor: Where they start.
        layout: Their names, shapes and dtypes.

    Returns:
        Name -> tensor.

    Raises:
        AdapterFormatError: Ends too early.
    """
    found = {}
    for counter in layout.counters:
        # A byte that is neither 0 nor 1 is no truth value, whatever the dtype says.
        dtype = "uint8" if counter.dtype == "bool" else counter.dtype
        values: Any = cursor.array(dtype, math.prod(counter.shape))
        values = values != 0 if counter.dtype == "bool" else values
        found[counter.name] = torch.from_numpy(np.array(values).reshape(counter.shape))
    return found
