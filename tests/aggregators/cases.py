"""Adapters, comparisons and oracles that the aggregator tests share."""

from collections.abc import Callable, Mapping, Sequence

import torch

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair, fold_scaling
from tests.oracles.fedavg import fedavg
from tests.oracles.rbla import rbla
from tests.oracles.zero_pad import zero_pad
from tests.strategies import normal, pair_of

Aggregate = Callable[..., LoraAdapter]  # (updates, weights, previous=None)

ORACLES = {"fedavg": fedavg, "rbla": rbla, "zero_pad": zero_pad}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}

# Part 7 of the method notes: two clients of ranks 1 and 2, weights 1/4 and 3/4.
F1_A = ([[1.0, 2.0]], [[5.0, 6.0], [7.0, 8.0]])
F1_B = ([[3.0], [4.0]], [[1.0, 0.0], [0.0, 2.0]])
F1_WEIGHTS = [1.0, 3.0]


def f1(scales: tuple[float, float] = (1.0, 1.0), dtype: torch.dtype = torch.float64) -> list[LoraAdapter]:
    """Build the two clients of fixture F1."""
    return [
        LoraAdapter({"m": LoraPair(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype), scale)})
        for a, b, scale in zip(F1_A, F1_B, scales, strict=True)
    ]


def client(
    ranks: Mapping[str, int],
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, int] = (5, 4),
    dense: Mapping[str, torch.Tensor] | None = None,
) -> LoraAdapter:
    """Build one client's linear layers from a seed; `sizes` are inputs and outputs."""
    form = LayerForm("linear", (sizes[0],))
    pairs = {
        path: pair_of(form, sizes[1], rank, seed=seed + 10 * i, dtype=dtype)
        for i, (path, rank) in enumerate(sorted(ranks.items()))
    }
    return LoraAdapter(pairs, dense or {})


def tiny_cohort(count: int, *, seed: int = 0, max_rank: int = 3) -> tuple[list[LoraAdapter], list[float]]:
    """Build many small clients whose ranks cycle from 1 to `max_rank`."""
    updates = [
        client({"m": 1 + k % max_rank}, seed + 100 * k, dense={"head": normal((2,), seed + 7 * k)})
        for k in range(count)
    ]
    return updates, [1.0 + 0.3 * (k % 5) for k in range(count)]


def tensors(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    """Name every tensor of an adapter."""
    named = dict(adapter.dense)
    for path, pair in adapter.pairs.items():
        named[f"{path}.a"], named[f"{path}.b"] = pair.a, pair.b
    return named


def same_bits(left: LoraAdapter, right: LoraAdapter) -> bool:
    """Tell whether two adapters hold the same tensors, bit for bit, at the same scalings."""
    ours, theirs = tensors(left), tensors(right)
    return (
        ours.keys() == theirs.keys()
        and all(t.dtype == theirs[n].dtype and torch.equal(t, theirs[n]) for n, t in ours.items())
        and all(pair.scaling == right.pairs[p].scaling for p, pair in left.pairs.items())
    )


def distance(left: LoraAdapter, right: LoraAdapter) -> float:
    """Return the largest difference of any entry, infinity if names or shapes differ."""
    ours, theirs = tensors(fold_scaling(left)), tensors(fold_scaling(right))
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in theirs.items()}:
        return float("inf")
    return max(float((t.double() - theirs[n].double()).abs().max()) for n, t in ours.items())


def tolerance(adapter: LoraAdapter) -> float:
    """Return how much rounding may move an entry: relative to the largest one, by dtype."""
    folded = tensors(fold_scaling(adapter)).values()
    return TOLERANCE[next(iter(folded)).dtype] * max(1.0, *(float(t.abs().max()) for t in folded))


def by_oracle(name: str, updates: Sequence[LoraAdapter], weights: Sequence[float]) -> LoraAdapter:
    """Aggregate with the naive twin, in Python floats; every client holds every module and tensor."""
    pairs = {}
    for path, like in updates[0].pairs.items():
        clients = [(u.pairs[path].a.tolist(), u.pairs[path].b.tolist(), u.pairs[path].scaling) for u in updates]
        a, b = ORACLES[name](clients, list(weights))
        pairs[path] = LoraPair(
            torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), 1.0, like.form
        )
    total = sum(weights)
    dense = {
        name: torch.stack([w / total * u.dense[name].double() for u, w in zip(updates, weights, strict=True)]).sum(0)
        for name in updates[0].dense
    }
    return LoraAdapter(pairs, dense)
