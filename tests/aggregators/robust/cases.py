"""Cohorts, attacks and comparisons that the tests of robust rules share."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import dense_product
from tasks.aggregators.robust.screen import Screened
from tests.strategies import normal

FEWEST = 5  # smallest cohort that every rule takes with its defaults


def scalar(product: float, *, head: float | None = None) -> LoraAdapter:
    """Build an update that is one number, and a head of one number."""
    pair = LoraPair(torch.tensor([[product]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    return LoraAdapter({"m": pair}, {} if head is None else {"head": torch.tensor([head], dtype=torch.float64)})


def row(*values: float) -> LoraAdapter:
    """Build an update whose product is one row of numbers."""
    return LoraAdapter({"m": LoraPair(torch.tensor([values], dtype=torch.float64), torch.ones(1, 1).double())})


def neighbours(
    count: int, *, seed: int = 0, rank: int = 3, spread: float = 0.05, dtype: torch.dtype = torch.float32
) -> list[LoraAdapter]:
    """Build honest clients: one common update and a small difference each, of one rank."""
    centre_a, centre_b, head = normal((rank, 6), seed), normal((7, rank), seed + 1), normal((4,), seed + 2)
    updates = []
    for k in range(count):
        start = seed + 100 * (k + 1)
        a = centre_a + spread * normal((rank, 6), start)
        b = centre_b + spread * normal((7, rank), start + 1)
        own_head = head + spread * normal((4,), start + 2)
        updates.append(LoraAdapter({"m": LoraPair(a.to(dtype), b.to(dtype), 2.0)}, {"head": own_head.to(dtype)}))
    return updates


def blown_up(update: LoraAdapter, size: float = 1e6) -> LoraAdapter:
    """Multiply everything a client sends."""
    pairs = {path: replace(pair, b=pair.b * size) for path, pair in update.pairs.items()}
    return LoraAdapter(pairs, {name: tensor * size for name, tensor in update.dense.items()})


def regauged(update: LoraAdapter, seed: int) -> LoraAdapter:
    """Write the same update as other factors: slots mixed, b a hundred times larger, a as much smaller."""
    pairs = {}
    for k, (path, pair) in enumerate(update.pairs.items()):
        mixing, _ = torch.linalg.qr(normal((pair.rank, pair.rank), seed + k, dtype=torch.float64))
        a = (mixing.T @ pair.a.double()) / 100
        b = (pair.b.double() @ mixing) * 100
        pairs[path] = replace(pair, a=a.to(pair.a.dtype), b=b.to(pair.b.dtype))
    return LoraAdapter(pairs, update.dense)


def sheared(update: LoraAdapter, size: float) -> LoraAdapter:
    """Write the same update as factors that are much larger than their product, and cancel in it."""
    pairs = {}
    for path, pair in update.pairs.items():
        shear = size * normal((pair.rank, pair.rank), 17, dtype=pair.a.dtype).triu(1)
        mixing = torch.eye(pair.rank, dtype=pair.a.dtype) + shear
        a, b = torch.linalg.solve_triangular(mixing, pair.a, upper=True), pair.b @ mixing
        pairs[path] = replace(pair, a=a, b=b)
    return LoraAdapter(pairs, update.dense)


def point(update: LoraAdapter) -> np.ndarray:
    """Return the update as one vector: every product and every dense tensor, flat."""
    parts = [dense_product(pair) for pair in update.pairs.values()] + [t.double() for t in update.dense.values()]
    return torch.cat([part.flatten() for part in parts]).numpy()


def outcome(screened: Screened) -> np.ndarray:
    """Return the weighted mean of what is left, as a vector: what an exact aggregator would make of it."""
    return mean([point(update) for update in screened.updates], screened.weights)


def mean(points: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return the weighted mean of vectors."""
    total = sum(weights)
    return np.sum([w / total * p for w, p in zip(weights, points, strict=True)], axis=0)


def gap(left: np.ndarray, right: np.ndarray) -> float:
    """Return how far apart two vectors are, relative to the longer one."""
    return float(np.linalg.norm(left - right)) / max(1e-300, float(np.linalg.norm(left)), float(np.linalg.norm(right)))
