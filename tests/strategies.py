"""Hypothesis strategies for adapters, so that every law is tried on every layer kind, size and dtype.

Numbers come from a drawn seed rather than one draw per entry: cheap, well spread, and a failure still shrinks to
the fewest modules, slots and clients.
"""

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tasks.adapters.lora import LayerForm, LayerKind, LoraAdapter, LoraPair

FLOATS: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
KINDS: tuple[LayerKind, ...] = ("linear", "conv", "embedding")
MODULE_PATHS = ("layers.0", "layers.1", "layers.11", "x.layers.1", "encoder.layer.0.attention.self.query")
DENSE_NAMES = ("classifier.bias", "classifier.weight", "layers.0.bias")


def normal(shape: Sequence[int], seed: int, *, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Return normally distributed numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * scale).to(dtype)


def layer_forms(kinds: Sequence[LayerKind] = KINDS) -> SearchStrategy[LayerForm]:
    """Draw how a layer is stored; outer sizes stay small so that dense references stay cheap."""
    sizes = st.integers(1, 7)
    by_kind = {
        "linear": st.builds(lambda i: LayerForm("linear", (i,)), sizes),
        "conv": st.builds(
            lambda c, k: LayerForm("conv", (c, k, k), (1, 1)), st.integers(1, 3), st.sampled_from((1, 3))
        ),
        "embedding": st.builds(lambda i: LayerForm("embedding", (i,)), sizes),
    }
    return st.one_of([by_kind[kind] for kind in kinds])


def pair_of(
    form: LayerForm,
    outer: int,
    rank: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    scaling: float = 1.0,
) -> LoraPair:
    """Build one pair of the given form with reproducible entries."""
    a = normal((rank, math.prod(form.a_tail)), seed, dtype=dtype)
    b = normal((outer, rank), seed + 1, dtype=dtype)
    return LoraPair(a, b, scaling, form)


@st.composite
def lora_pairs(
    draw: DrawFn,
    *,
    kinds: Sequence[LayerKind] = KINDS,
    dtypes: Sequence[torch.dtype] = FLOATS,
    max_rank: int = 5,
    is_folded: bool = False,
) -> LoraPair:
    """Draw one module's factors, of any kind, size, rank, dtype and scaling (1 if `is_folded`)."""
    return pair_of(
        draw(layer_forms(kinds)),
        draw(st.integers(1, 7)),
        draw(st.integers(1, max_rank)),
        seed=draw(st.integers(0, 2**20)),
        dtype=draw(st.sampled_from(dtypes)),
        scaling=1.0 if is_folded else draw(st.sampled_from((1.0, 0.5, 2.0, 16.0))),
    )


@st.composite
def adapters(
    draw: DrawFn,
    *,
    kinds: Sequence[LayerKind] = KINDS,
    dtypes: Sequence[torch.dtype] = FLOATS,
    max_rank: int = 5,
    is_folded: bool = False,
) -> LoraAdapter:
    """Draw a whole adapter: one to three modules of one dtype with ranks of their own, up to two dense tensors."""
    clients, _ = draw(cohorts(kinds=kinds, dtypes=dtypes, max_rank=max_rank, max_clients=1, is_folded=is_folded))
    return clients[0]


@st.composite
def cohorts(
    draw: DrawFn,
    *,
    kinds: Sequence[LayerKind] = KINDS,
    dtypes: Sequence[torch.dtype] = FLOATS,
    max_rank: int = 5,
    min_clients: int = 1,
    max_clients: int = 4,
    is_folded: bool = False,
    has_equal_ranks: bool = False,
) -> tuple[list[LoraAdapter], list[float]]:
    """Draw clients over the same modules and outer sizes with ranks of their own, and a positive weight each."""
    dtype = draw(st.sampled_from(dtypes))
    paths = draw(st.lists(st.sampled_from(MODULE_PATHS), min_size=1, max_size=3, unique=True))
    layers = {path: (draw(layer_forms(kinds)), draw(st.integers(1, 7))) for path in sorted(paths)}
    dense = {
        name: tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
        for name in sorted(draw(st.sets(st.sampled_from(DENSE_NAMES), max_size=2)))
    }
    num_clients = draw(st.integers(min_clients, max_clients))
    ranks = st.integers(1, max_rank)
    shared = {path: draw(ranks) for path in layers} if has_equal_ranks else {}
    scalings = st.just(1.0) if is_folded else st.sampled_from((1.0, 0.5, 2.0, 16.0))
    seed = draw(st.integers(0, 2**20))
    clients = []
    for client in range(num_clients):
        start = seed + 1000 * client
        pairs = {
            path: pair_of(
                form,
                outer,
                shared[path] if has_equal_ranks else draw(ranks),
                seed=start + 10 * i,
                dtype=dtype,
                scaling=draw(scalings),
            )
            for i, (path, (form, outer)) in enumerate(layers.items())
        }
        heads = {name: normal(shape, start + 500 + i, dtype=dtype) for i, (name, shape) in enumerate(dense.items())}
        clients.append(LoraAdapter(pairs, heads))
    weights = draw(st.lists(st.floats(0.5, 500.0), min_size=num_clients, max_size=num_clients))
    return clients, weights
