"""Adapters, comparisons and oracles that the aggregator tests share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tasks.adapters.core import core_of, frozen_b, with_core
from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair, fold_scaling, prefix
from tasks.adapters.products import dense_product
from tasks.aggregators.table import AGGREGATORS, Aggregator
from tests.oracles.delta_svd import delta_svd
from tests.oracles.fed_sb import fed_sb
from tests.oracles.fedavg import fedavg
from tests.oracles.fedex import fedex
from tests.oracles.fedsa import fedsa
from tests.oracles.ffa import ffa
from tests.oracles.flexlora import cut, flexlora
from tests.oracles.flora_stack import flora_stack
from tests.oracles.hetlora import hetlora, norm_weights
from tests.oracles.raflora import raflora, raflora_canonical
from tests.oracles.rbla import rbla
from tests.oracles.zero_pad import zero_pad
from tests.strategies import normal, pair_of

Aggregate = Callable[..., LoraAdapter]  # (updates, weights, previous=None)
Law = Callable[[Aggregate, Aggregator, list[LoraAdapter], list[float]], None]

# Rows that average slots have oracles that return (A, B), rows that average products ones that return the product.
ORACLES: dict[str, Callable[..., Any]] = {
    "fedavg": fedavg,
    "rbla": rbla,
    "zero_pad": zero_pad,
    "hetlora": hetlora,
    "ffa": ffa,
    "fedsa": fedsa,
    "fed_sb": fed_sb,
    "flexlora": flexlora,
    "raflora": raflora,
    "raflora_canonical": raflora_canonical,
    "delta_svd": delta_svd,
    "flora_stack": flora_stack,
    "fedex": fedex,
}
OWN_WEIGHTS = {"hetlora": norm_weights}  # methods that find their weights in what clients send
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}

# Part 7 of the method notes: two clients of ranks 1 and 2, weights 1/4 and 3/4.
F1_A = ([[1.0, 2.0]], [[5.0, 6.0], [7.0, 8.0]])
F1_B = ([[3.0], [4.0]], [[1.0, 0.0], [0.0, 2.0]])
F1_WEIGHTS = [1.0, 3.0]


# What is unlike the layers that `client` builds with its default sizes.
MISFITS = {
    "inputs": LoraPair(torch.ones(2, 6), torch.ones(4, 2)),
    "outputs": LoraPair(torch.ones(2, 5), torch.ones(3, 2)),
    "kind": LoraPair(torch.ones(2, 5), torch.ones(4, 2), 1.0, LayerForm("embedding", (5,))),
}


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


def products(adapter: LoraAdapter) -> LoraAdapter:
    """Multiply every pair out: the same update as dense tensors only, to be compared whatever its factors."""
    dense = {f"{path}.product": dense_product(pair) for path, pair in adapter.pairs.items()}
    return LoraAdapter({}, {**adapter.dense, **dense})


def seen(row: Aggregator, adapter: LoraAdapter) -> LoraAdapter:
    """Keep what a row's laws compare: its products, the factor that crosses the link, or both factors."""
    folded = fold_scaling(adapter)
    if row.averages == "products":
        return products(folded)
    if row.sends == "a":
        return LoraAdapter({}, {**folded.dense, **{f"{path}.a": pair.a for path, pair in folded.pairs.items()}})
    return folded


def gap(row: Aggregator, left: LoraAdapter, right: LoraAdapter) -> float:
    """Return the largest difference that a row's laws can see."""
    return distance(seen(row, left), seen(row, right))


def tolerance(adapter: LoraAdapter) -> float:
    """Return how much rounding may move an entry: relative to the largest one, by dtype."""
    folded = tensors(fold_scaling(adapter)).values()
    return TOLERANCE[next(iter(folded)).dtype] * max(1.0, *(float(t.abs().max()) for t in folded))


def allowance(row: Aggregator, *inputs: LoraAdapter) -> float:
    """Return how much rounding may move what a row's laws compare, given what went in."""
    if row.averages == "slots":
        return max(tolerance(one) for one in inputs)
    return max(tolerance(LoraAdapter(one.pairs, {**one.dense, **reach(one)})) for one in inputs)


def reach(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    """Name how large every entry of the products would be if no slots cancelled."""
    return {
        f"{path}.product": (abs(pair.scaling) * pair.b.double().abs() @ pair.a.double().abs()).to(pair.a.dtype)
        for path, pair in adapter.pairs.items()
    }


def rounding(row: Aggregator, result: LoraAdapter) -> dict[str, torch.Tensor]:
    """Bound, entry by entry, what one rounding of a result's tensors to their dtype may cost what the laws compare."""
    wide = cast(result, torch.float64)
    half = torch.finfo(next(iter(tensors(result).values())).dtype).eps / 2
    bounds = {name: half * tensor.abs() for name, tensor in tensors(seen(row, wide)).items()}
    if row.averages == "products":
        bounds.update({name: (2 * half + half**2) * entry for name, entry in reach(wide).items()})
    # Sums are in float32, and where clients cancel, that is all that can be asked for.
    slack = TOLERANCE[torch.float32] * max(1.0, *(float(bound.max()) / half for bound in bounds.values()))
    return {name: 1.01 * bound + slack for name, bound in bounds.items()}


def suited(row: Aggregator, updates: Sequence[LoraAdapter]) -> list[LoraAdapter]:
    """Turn clients into ones a row can aggregate: of one rank, or on rows of one frozen `a`, if it needs that.

    Cores come out triangular: of those the first slots are the leading block, so that laws may cut clients by slots.
    """
    if not row.mixed_ranks:
        level = {path: min(u.ranks[path] for u in updates) for path in updates[0].pairs}
        updates = [prefix(update, level) for update in updates]
    if row.sends in {"b", "core"}:
        frozen = {p: max((u.pairs[p] for u in updates), key=lambda pair: pair.rank).a for p in updates[0].pairs}
        updates = [
            LoraAdapter({p: replace(v, a=frozen[p][: v.rank].clone()) for p, v in u.pairs.items()}, u.dense)
            for u in updates
        ]
    if row.sends == "core":
        updates = [LoraAdapter({p: cored(pair) for p, pair in u.pairs.items()}, u.dense) for u in updates]
    return list(updates)


def cored(pair: LoraPair) -> LoraPair:
    """Turn a pair into one with a triangular core between its `a` and what belongs to that; the scaling stays."""
    bare = replace(pair, scaling=1.0)
    return replace(pair, b=with_core(bare, core_of(bare).triu()).b.to(pair.b.dtype))


def shifted(row: Aggregator, update: LoraAdapter, by: float) -> LoraAdapter:
    """Move the factor that a client trains, or the diagonal of the core."""
    return LoraAdapter({p: _shifted(row, pair, by) for p, pair in update.pairs.items()}, update.dense)


def _shifted(row: Aggregator, pair: LoraPair, by: float) -> LoraPair:
    if row.sends == "core":
        return replace(pair, b=pair.b + by * frozen_b(pair.a, len(pair.b)).to(pair.b.dtype))
    return replace(pair, b=pair.b + by) if row.sends == "b" else replace(pair, a=pair.a + by)


def cast(adapter: LoraAdapter, dtype: torch.dtype) -> LoraAdapter:
    """Round every tensor of an adapter to a dtype."""
    pairs = {p: replace(pair, a=pair.a.to(dtype), b=pair.b.to(dtype)) for p, pair in adapter.pairs.items()}
    return LoraAdapter(pairs, {name: tensor.to(dtype) for name, tensor in adapter.dense.items()})


def gauged(adapter: LoraAdapter, seed: int) -> LoraAdapter:
    """Express the same update in other factors, in float64, and move part of its size into the scaling."""
    pairs = {path: gauged_pair(pair, seed + k) for k, (path, pair) in enumerate(adapter.pairs.items())}
    return LoraAdapter(pairs, adapter.dense)


def gauged_pair(pair: LoraPair, seed: int) -> LoraPair:
    """Express one pair as `b g^-1` and `g a`, with g a rotation times scales from 1/2 to 2."""
    turn, _ = torch.linalg.qr(normal((pair.rank, pair.rank), seed, dtype=torch.float64))
    g = turn * torch.exp2(normal((pair.rank,), seed + 5, dtype=torch.float64).clamp(-1, 1))
    b = pair.scaling / 4.0 * pair.b.double() @ torch.linalg.inv(g)
    return replace(pair, a=g @ pair.a.double(), b=b, scaling=4.0)


def earlier(updates: Sequence[LoraAdapter], seed: int = 77) -> LoraAdapter:
    """Build a global adapter with content of its own, one slot larger than the largest client's."""
    pairs = {}
    for k, (path, like) in enumerate(updates[0].pairs.items()):
        rank = 1 + max(u.ranks[path] for u in updates)
        pairs[path] = pair_of(like.form, like.b.shape[0], rank, seed=seed + 2 * k, dtype=like.a.dtype, scaling=2.0)
    return LoraAdapter(pairs, updates[-1].dense)


def mixed_cohort(seed: int) -> tuple[list[LoraAdapter], list[float]]:
    """Build three clients of unequal rank over two modules, the one of the largest rank first."""
    ranks = [{"layers.0": 4, "layers.1": 3}, {"layers.0": 1, "layers.1": 3}, {"layers.0": 2, "layers.1": 1}]
    updates = [
        client(
            r, 1000 * seed + 50 * k, dtype=torch.float64, dense={"head": normal((3,), seed + k, dtype=torch.float64)}
        )
        for k, r in enumerate(ranks)
    ]
    return updates, [40.0, 120.0, 70.0]


def by_oracle(name: str, updates: Sequence[LoraAdapter], weights: Sequence[float]) -> LoraAdapter:
    """Aggregate with the naive twin; every client holds every module and tensor. See `seen` for what comes out."""
    modules = {path: plain(path, updates) for path in updates[0].pairs}
    dense = _dense_means(updates, weights)
    if AGGREGATORS[name].averages == "products":
        results = {f"{path}.product": f64(ORACLES[name](clients, list(weights))) for path, clients in modules.items()}
        return LoraAdapter({}, {**dense, **results})
    slot_weights = OWN_WEIGHTS[name](list(modules.values())) if name in OWN_WEIGHTS else list(weights)
    pairs = {}
    for path, clients in modules.items():
        a, b = ORACLES[name](clients, slot_weights)
        pairs[path] = LoraPair(f64(a), f64(b), 1.0, updates[0].pairs[path].form)
    return LoraAdapter(pairs, dense)


def plain(path: str, updates: Sequence[LoraAdapter]) -> list[tuple[Any, Any, float]]:
    """Return one module of all clients as oracles take it: A, B and scale in Python floats."""
    return [(u.pairs[path].a.tolist(), u.pairs[path].b.tolist(), u.pairs[path].scaling) for u in updates]


def level_mean(row: Aggregator, updates: Sequence[LoraAdapter], weights: Sequence[float]) -> LoraAdapter:
    """Return what every method makes of clients of one rank: the mean of factors, or of products as its rank allows."""
    if row.averages == "slots":
        return by_oracle("fedavg", updates, weights)
    means = dict(by_oracle("flora_stack", updates, weights).dense)
    if row.rank != "sum":
        for path, pair in updates[0].pairs.items():
            means[f"{path}.product"] = f64(cut(means[f"{path}.product"].numpy(), pair.rank))
    return LoraAdapter({}, means)


def f64(values: Any) -> torch.Tensor:
    """Return numbers as a tensor of doubles."""
    return torch.as_tensor(values, dtype=torch.float64)


def _dense_means(updates: Sequence[LoraAdapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    total = sum(weights)
    return {
        name: torch.stack([w / total * u.dense[name].double() for u, w in zip(updates, weights, strict=True)]).sum(0)
        for name in updates[0].dense
    }
