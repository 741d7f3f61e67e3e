"""An adapter at another rank: the best cut below, zero slots above.

Cutting goes through the product (SVD), never through a prefix of the slots: a prefix is only a good share where the
slots are ordered by energy, and `tasks.adapters.lora.prefix` is there for that case.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch.nn.functional import pad

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.products import check_rank, truncate
from tasks.errors import AdapterShapeError


def resize(adapter: LoraAdapter, rank: int | Mapping[str, int]) -> LoraAdapter:
    """Bring an adapter's modules to other ranks.

    Args:
        adapter: Any adapter.
        rank: One rank for all modules, or module path -> rank; modules without an entry are left out, as in `prefix`.

    Returns:
        Scaling folded. A smaller rank is the best approximation of the product, a larger one keeps every slot and adds
        zeros to both factors, an equal one keeps the factors as they are. Dense tensors are kept.

    Raises:
        AdapterShapeError: A rank is below 1, or names a module that the adapter does not have.
    """
    ranks = dict.fromkeys(adapter.pairs, rank) if isinstance(rank, int) else rank
    folded = fold_scaling(adapter)
    pairs = {}
    for path, wanted in ranks.items():
        if path not in folded.pairs:
            raise AdapterShapeError(
                f"module {path}", "is not in the adapter", expected="one of " + ", ".join(folded.pairs)
            )
        check_rank(f"module {path}", wanted)
        pairs[path] = _resized(folded.pairs[path], wanted)
    return LoraAdapter(pairs, folded.dense)


def _resized(pair: LoraPair, rank: int) -> LoraPair:
    extra = rank - pair.rank
    if extra < 0:
        return truncate(pair, rank)
    return replace(pair, a=pad(pair.a, (0, 0, 0, extra)), b=pad(pair.b, (0, extra))) if extra else pair
