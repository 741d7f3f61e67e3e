"""Where every number of an adapter stands in one flat vector, which both ends of a transfer know from their reference.

Legend of dimensions: R rank, I inputs, O outputs. Factor a is laid out row by row, factor b column by column, so that
every rank slot is one run of numbers; for codecs that work by output channel, b is laid out row by row as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair
from tasks.errors import AdapterShapeError

Vector = NDArray[np.float32]
Scale = Literal["slot", "group", "channel", "message"]
"""What shares one scale: a rank slot's row or column, 64 numbers of a tensor, an output channel, everything."""

GROUP = 64
_ROLES = {"::lora_A": "a", "::lora_B": "b"}  # also how thin messages name a factor that is sent alone


@dataclass(frozen=True)
class Part:
    """One tensor of numbers.

    Args:
        name: Module path and "::lora_A" or "::lora_B", or the name of a dense tensor.
        shape: As the adapter holds it: a [R, I], b [O, R].
    """

    name: str
    shape: tuple[int, ...]

    @property
    def role(self) -> str:
        """Whether it is a factor "a" or "b", or "dense"."""
        return _ROLES.get(self.name[-8:], "dense") if len(self.shape) == 2 else "dense"

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Counter:
    """A tensor of whole numbers, always sent as it is.

    Args:
        name: Of the dense tensor.
        shape: Its sizes.
        dtype: As torch spells it, e.g. "int64".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layout:
    """Everything about an adapter but its numbers.

    Args:
        forms: Module path and form of every pair, sorted.
        parts: Both factors of every pair, then dense tensors, in the order of the vector.
        counters: Tensors of whole numbers.
    """

    forms: tuple[tuple[str, LayerForm], ...]
    parts: tuple[Part, ...]
    counters: tuple[Counter, ...]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(part.size for part in self.parts)

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Where each part starts, and where the last one ends."""
        return np.cumsum([0, *(part.size for part in self.parts)], dtype=np.int64)


def layout_of(adapter: LoraAdapter) -> Layout:
    """Return where the numbers of an adapter stand.

    Args:
        adapter: Any adapter.

    Returns:
        The same for every adapter of the same modules, ranks and tensors.
    """
    factors = [
        Part(path + suffix, tuple(factor.shape))
        for path, pair in adapter.pairs.items()
        for suffix, factor in zip(_ROLES, (pair.a, pair.b), strict=True)
    ]
    floats = [Part(name, tuple(t.shape)) for name, t in adapter.dense.items() if t.is_floating_point()]
    counters = [
        Counter(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in adapter.dense.items()
        if not t.is_floating_point()
    ]
    forms = tuple((path, pair.form) for path, pair in adapter.pairs.items())
    return Layout(forms, (*factors, *floats), tuple(counters))


def check_fits(update: Layout, reference: Layout) -> None:
    """Raise if an update does not have the tensors of its reference.

    Args:
        update: What is to be sent.
        reference: What both ends hold.

    Raises:
        AdapterShapeError: Names the first module or tensor that differs.
    """
    if update == reference:
        return
    ours, theirs = ({*layout.forms, *layout.parts, *layout.counters} for layout in (update, reference))
    first = sorted(ours ^ theirs, key=str)[0]
    raise AdapterShapeError(
        "update",
        "does not have the modules, ranks and tensors of the reference",
        got=f"{first} in one of them only",
        remedy="train from this round's share and upload exactly its tensors",
    )


def flatten(adapter: LoraAdapter, scale: Scale) -> Vector:
    """Return the numbers of an adapter as one vector.

    Args:
        adapter: Float32, scaling 1.
        scale: What shares one scale; decides how b is laid out.

    Returns:
        A new vector in the order of the layout; no negative zeros.
    """
    found = [t for pair in adapter.pairs.values() for t in (pair.a, pair.b)]
    found += [t for t in adapter.dense.values() if t.is_floating_point()]
    parts = layout_of(adapter).parts
    arrays = [_laid(t.detach().cpu().numpy(), part, scale).reshape(-1) for part, t in zip(parts, found, strict=True)]
    # Adding zero makes -0.0 into 0.0: equal adapters must have equal digests.
    return np.concatenate([np.zeros(0, np.float32), *arrays]) + np.float32(0.0)


def tensors(vector: Vector, layout: Layout, scale: Scale) -> dict[str, torch.Tensor]:
    """Return the parts of a vector as tensors.

    Args:
        vector: In the order of the layout.
        layout: Where its numbers stand.
        scale: As in `flatten`.

    Returns:
        Part name -> tensor of its own, in the adapter's shapes.
    """
    found = {}
    for part, (start, stop) in zip(layout.parts, pairwise(layout.bounds), strict=True):
        laid = vector[start:stop]
        array = laid.reshape(part.shape[::-1]).T if _is_turned(part, scale) else laid.reshape(part.shape)
        found[part.name] = torch.from_numpy(array.copy(order="C"))
    return found


def unflatten(vector: Vector, layout: Layout, scale: Scale, counters: dict[str, torch.Tensor]) -> LoraAdapter:
    """Return the adapter that a vector stands for.

    Args:
        vector: In the order of the layout.
        layout: Where its numbers stand.
        scale: As in `flatten`.
        counters: Name -> tensor of whole numbers.

    Returns:
        An adapter in float32, scaling 1.
    """
    found = tensors(vector, layout, scale)
    a, b = _ROLES
    pairs = {path: LoraPair(found.pop(path + a), found.pop(path + b), 1.0, form) for path, form in layout.forms}
    return LoraAdapter(pairs, {**found, **counters})


def with_values(vectors: Mapping[str, torch.Tensor], layout: Layout, scale: Scale) -> Vector:
    """Return named tensors as one vector, zeros where a name or a shape does not fit.

    Args:
        vectors: Part name -> tensor.
        layout: Where the numbers stand.
        scale: As in `flatten`.

    Returns:
        A new vector.
    """
    whole = np.zeros(layout.size, np.float32)
    for part, (start, stop) in zip(layout.parts, pairwise(layout.bounds), strict=True):
        tensor = vectors.get(part.name)
        if tensor is not None and tuple(tensor.shape) == part.shape:
            whole[start:stop] = _laid(tensor.float().cpu().numpy(), part, scale).reshape(-1)
    return whole


def _is_turned(part: Part, scale: Scale) -> bool:
    return part.role == "b" and scale != "channel"


def _laid(array: np.ndarray, part: Part, scale: Scale) -> np.ndarray:
    return array.T if _is_turned(part, scale) else array
