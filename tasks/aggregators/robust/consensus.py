"""One update out of many, coordinate by coordinate: what the coordinate-wise rules share.

Raw factors cannot be compared entry by entry: `(100 b, a / 100)` is the same update, and so is `(b g^-1, g a)`. So
every pair is first brought to its balanced SVD with a fixed sign, which leaves only ties open. That makes the factors
comparable, not the slots: slot j is a client's j-th strongest direction, and where two singular values lie close, one
client's first direction may be another's second. The rules then compare what does not correspond, and the consensus
can fall short of every client. Rules on whole updates (`krum`, `geometric_median`) have no such weakness.

Legend of dimensions: N owners, R rank, I inputs, O outputs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.aggregators.robust.geometry import canonical

Combine = Callable[[torch.Tensor], torch.Tensor]
"""[N, ...] float64, one entry per owner -> [...]; the order of the owners must not matter."""


def consensus(updates: Sequence[LoraAdapter], combine: Combine) -> LoraAdapter:
    """Combine updates coordinate by coordinate, every slot over the clients that own it.

    Args:
        updates: One or more of one model, any scaling, ranks and float dtypes; finite.
        combine: The rule for one coordinate.

    Returns:
        Scaling 1; modules and dense tensors of all clients; rank per module the largest; the widest of the owners'
        dtypes. Integer tensors are counters, of which the lower median is taken.
    """
    paths = sorted({path for update in updates for path in update.pairs})
    pairs = {path: _pair([u.pairs[path] for u in updates if path in u.pairs], combine) for path in paths}
    return LoraAdapter(pairs, dense_consensus(updates, combine))


def dense_consensus(updates: Sequence[LoraAdapter], combine: Combine) -> dict[str, torch.Tensor]:
    """Combine dense tensors alone, each over the clients that hold it.

    Args:
        updates: One or more of one model.
        combine: The rule for one coordinate.

    Returns:
        Tensor name -> tensor, in the widest of the owners' dtypes.
    """
    names = sorted({name for update in updates for name in update.dense})
    return {name: _tensor([u.dense[name] for u in updates if name in u.dense], combine) for name in names}


def unguarded(updates: Sequence[LoraAdapter], is_guarded: Callable[[int], bool], why: str) -> dict[int, str]:
    """Say which clients hold slots or dense tensors that the rule does nothing for, because too few clients do.

    Args:
        updates: The updates.
        is_guarded: Number of owners -> whether the rule protects what they own.
        why: How the sentence goes on after "... of its ... slots and dense tensors".

    Returns:
        Index of an update -> the note.
    """
    owners = Counter(part for update in updates for part in _parts(update))
    notes = {}
    for index, parts in enumerate(map(_parts, updates)):
        bare = sum(not is_guarded(owners[part]) for part in parts)
        if bare:
            notes[index] = f"{bare} of its {len(parts)} slots and dense tensors {why}"
    return notes


def _parts(update: LoraAdapter) -> list[tuple[str, int]]:
    slots = [(path, slot) for path, rank in update.ranks.items() for slot in range(rank)]
    return slots + [(name, -1) for name in update.dense]


def _pair(pairs: Sequence[LoraPair], combine: Combine) -> LoraPair:
    plain, start, rows, columns = [canonical(pair) for pair in pairs], 0, [], []
    for end in sorted({pair.rank for pair in pairs}):
        owners = [pair for pair in plain if pair.rank >= end]
        rows.append(combine(torch.stack([pair.a[start:end] for pair in owners])))
        columns.append(combine(torch.stack([pair.b[:, start:end] for pair in owners])))
        start = end
    dtype = reduce(torch.promote_types, (tensor.dtype for pair in pairs for tensor in (pair.a, pair.b)))
    return LoraPair(torch.cat(rows).to(dtype), torch.cat(columns, dim=1).to(dtype), 1.0, pairs[0].form)


def _tensor(tensors: Sequence[torch.Tensor], combine: Combine) -> torch.Tensor:
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    if not dtype.is_floating_point:
        return torch.stack([tensor.to("cpu", dtype) for tensor in tensors]).sort(dim=0).values[(len(tensors) - 1) // 2]
    return combine(torch.stack([tensor.to("cpu", torch.float64) for tensor in tensors])).to(dtype)
