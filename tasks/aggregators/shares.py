"""A client's share of a global adapter where a prefix of the slots will not do: no slot of it is dead.

A slot with zeros in both factors never learns: each factor's gradient is the other one times something. An SVD leaves
such slots where the update has fewer directions than slots, and an energy threshold leaves slots out. Both come back
here with a row of `a` that is alive and a zero column of `b`: the product stays what it was, and the slot can learn.
Where clients start anew every round, all their slots are of this kind.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.products import truncate
from tasks.errors import AdapterShapeError


def living_prefix(adapter: LoraAdapter, ranks: Mapping[str, int]) -> LoraAdapter:
    """Keep the first slots of every module, reviving dead ones and adding what is missing.

    Args:
        adapter: The global adapter, slots by falling singular value.
        ranks: Module path -> slots wanted, 1 or more.

    Returns:
        Scaling 1; exactly these ranks; modules without an entry are left out, dense tensors are kept whole. The
        product is that of the slots kept.

    Raises:
        AdapterShapeError: A rank is below 1, or names an unknown module.
    """
    return _shared(adapter, ranks, _living)


def recut(adapter: LoraAdapter, ranks: Mapping[str, int]) -> LoraAdapter:
    """Bring a global adapter to the ranks that its clients have now.

    The best cut of the product, never a prefix of slots as they happen to lie: afterwards slots stand in order of
    strength, so that any prefix of them is the best cut as well. An adapter that has learnt nothing yet has no best cut
    and keeps its first slots.

    Args:
        adapter: The global adapter.
        ranks: Module path -> slots wanted, 1 or more, of every module.

    Returns:
        Scaling 1; exactly these ranks, none of the slots dead; dense tensors are kept.

    Raises:
        AdapterShapeError: A rank is below 1, or names an unknown module.
    """
    return _shared(adapter, ranks, _recut)


def _recut(pair: LoraPair, rank: int) -> LoraPair:
    has_learnt = bool(pair.a.any()) and bool(pair.b.any())
    return _living(truncate(pair, min(rank, pair.rank)) if has_learnt else pair, rank)


def fresh_share(adapter: LoraAdapter, ranks: Mapping[str, int]) -> LoraAdapter:
    """Start every module anew, for clients whose base holds the global adapter already.

    Args:
        adapter: The global adapter, for layer kinds, sizes, dtypes and dense tensors.
        ranks: Module path -> slots wanted, 1 or more.

    Returns:
        Scaling 1; exactly these ranks; living rows of `a`, zeros in `b`, so the product is zero; modules without an
        entry are left out, dense tensors are kept whole. The rows are the same for everyone: a client that trains may
        rather draw its own.

    Raises:
        AdapterShapeError: A rank is below 1, or names an unknown module.
    """
    return _shared(adapter, ranks, lambda pair, rank: _living(replace(pair, a=pair.a[:0], b=pair.b[:, :0]), rank))


def _shared(adapter: LoraAdapter, ranks: Mapping[str, int], share: Callable[[LoraPair, int], LoraPair]) -> LoraAdapter:
    folded, pairs = fold_scaling(adapter), {}
    for path, rank in ranks.items():
        pair = folded.pairs.get(path)
        if pair is None or rank < 1:
            raise AdapterShapeError(
                f"module {path}",
                "cannot be shared at this rank",
                got=f"rank {rank}",
                expected="a module of the adapter" if pair is None else "a rank of 1 or more",
            )
        pairs[path] = share(pair, rank)
    return LoraAdapter(pairs, folded.dense)


def _living(pair: LoraPair, rank: int) -> LoraPair:
    a, b = pair.a[:rank], pair.b[:, :rank]
    alive = a.ne(0).any(dim=1) | b.ne(0).any(dim=0)
    if bool(alive.all()) and len(alive) == rank:
        return replace(pair, a=a.contiguous(), b=b.contiguous())
    a, b = a[alive], b[:, alive]
    missing = rank - a.shape[0]
    a = torch.cat([a, _fresh_rows(a, missing)])
    b = torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1)
    return replace(pair, a=a, b=b)


def _fresh_rows(taken: torch.Tensor, count: int) -> torch.Tensor:
    """Return rows that point where the taken ones [R, I] do not, as long as PEFT's fresh rows of linear layers.

    Cosines rather than random numbers: nothing here needs a seed, and no row looks at a single input only.
    """
    inputs = taken.shape[1]
    places = (torch.arange(inputs, dtype=torch.float64) + 0.5) * math.pi / inputs
    # There are as many cosines as inputs; the next one in line would be zero at every place.
    frequencies = torch.arange(1, count + 1, dtype=torch.float64) % inputs
    rows = torch.cos(torch.outer(frequencies, places))
    known, _ = torch.linalg.qr(taken.to(torch.float64).T)
    apart = rows - rows @ known @ known.T
    # Where the taken rows span everything there is no other direction: any row that is not zero will do.
    is_new = torch.linalg.vector_norm(apart, dim=1) > 1e-6 * torch.linalg.vector_norm(rows, dim=1)
    rows = torch.where(is_new[:, None], apart, rows)
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True) / math.sqrt(3)
    return rows.to(taken.dtype)
