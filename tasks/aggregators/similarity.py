"""How alike several clients' adapters are, as products: inner products, cosine distances, and their memory over rounds.

Here: numbers about pairs of clients. Not here: which clients belong together (`clusters`), one adapter against another
(`tasks.adapters.products`).

Legend of dimensions: K adapters, R rank, S sum of ranks, I inputs, O outputs. All arithmetic is float64 on the CPU.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite
from tasks.adapters.products import check_same_layer, f64
from tasks.errors import ConfigError, EmptyCohortError, NonFiniteUpdateError, RecordFormatError

_ROUNDING = 64 * float(np.finfo(np.float64).eps)


def change(after: LoraAdapter, before: LoraAdapter) -> LoraAdapter:
    """Return what training added to an adapter, as an adapter.

    After a round in common, whole adapters are alike for what they started from: all for the mean, those of one rank
    for the same prefix of it. What training added shows what the client wants.

    Args:
        after: What a client sends.
        before: What it had received.

    Returns:
        Ranks R_after + R_before, scaling 1, float64, no dense tensors.

    Raises:
        AdapterShapeError: A module's outer sizes differ.
    """
    pairs = {}
    for path in {*after.pairs, *before.pairs}:
        signed = [(sign, x.pairs[path]) for sign, x in ((1.0, after), (-1.0, before)) if path in x.pairs]
        pairs[path] = LoraPair(*_stacked(path, [pair for _, pair in signed], [sign for sign, _ in signed]))
    return LoraAdapter(pairs)


def gram(adapters: Sequence[LoraAdapter]) -> np.ndarray:
    r"""Return the inner products of all adapters' updates, whatever their ranks and gauges.

    $G_{ij} = \sum_m \langle s_i b_i a_i, s_j b_j a_j \rangle = \sum_m s_i s_j \sum (b_i^T b_j) \circ (a_i a_j^T)$.
    All clients' factors of a module are stacked: two matrix products of [R_k, S] per client and a sum over blocks,
    nothing dense.

    Args:
        adapters: One per client, pair k has a [R_k, I] and b [O, R_k]; a module that one lacks counts as zero there,
            dense tensors do not count.

    Returns:
        [K, K] float64, symmetric; rows of zeros for adapters that cancel to rounding level. Another order of the
        adapters gives the same numbers up to rounding: whoever needs the same bits sorts by client id first.

    Raises:
        EmptyCohortError: No adapters.
        AdapterShapeError: A module's outer sizes differ between adapters.
        NonFiniteUpdateError: A tensor holds NaN or infinity.

    Invariants:
        Other factors of the same products change nothing; neither does moving scale between `scaling` and a factor.
    """
    if not adapters:
        raise EmptyCohortError("similarity", "there are no adapters to compare")
    for i, adapter in enumerate(adapters):
        check_finite(adapter, f"adapter {i}")
    total = np.zeros((len(adapters), len(adapters)))
    for path in sorted({path for adapter in adapters for path in adapter.pairs}):
        owners = [i for i, adapter in enumerate(adapters) if path in adapter.pairs and adapter.pairs[path].rank]
        total[np.ix_(owners, owners)] += _module_gram(path, [adapters[i].pairs[path] for i in owners])
    is_moving = np.diagonal(total) > _ROUNDING * np.array([_uncancelled(adapter) for adapter in adapters])
    return np.where(np.outer(is_moving, is_moving), (total + total.T) / 2, 0.0)


def _uncancelled(adapter: LoraAdapter) -> float:
    """Return what an adapter's squared norm could be at most; far below it, the norm is nothing but rounding."""
    sizes = [pair.scaling * f64(pair.a).norm() * f64(pair.b).norm() for pair in adapter.pairs.values()]
    return sum(float(size) ** 2 for size in sizes)


def _module_gram(path: str, pairs: Sequence[LoraPair]) -> np.ndarray:
    if not pairs:
        return np.zeros((0, 0))
    a_SI, b_OS = _stacked(path, pairs, [1.0] * len(pairs))
    starts, rows = np.cumsum([0, *(pair.rank for pair in pairs[:-1])]), []
    for start, pair in zip(starts.tolist(), pairs, strict=True):
        mine = slice(start, start + pair.rank)
        slots_RS = (b_OS[:, mine].T @ b_OS) * (a_SI[mine] @ a_SI.T)
        rows.append(np.add.reduceat(slots_RS.sum(dim=0).numpy(), starts))
    return np.array(rows)


def _stacked(path: str, pairs: Sequence[LoraPair], factors: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    for pair in pairs:
        check_same_layer(f"module {path}", pairs[0], pair)
    scaled = [factor * pair.scaling * f64(pair.b) for factor, pair in zip(factors, pairs, strict=True)]
    return torch.cat([f64(pair.a) for pair in pairs]), torch.cat(scaled, dim=1)


def cosine_distance(gram: np.ndarray) -> np.ndarray:
    """Return how far apart the directions of adapters are, one minus their cosine.

    Args:
        gram: [K, K] inner products.

    Returns:
        [K, K] float64 in [0, 2], symmetric, zero diagonal: 0 same direction, 1 orthogonal, 2 opposite. An adapter of
        norm zero has no direction and is at distance 1 from all others.

    Raises:
        ConfigError: Not a square matrix.
        NonFiniteUpdateError: An inner product is NaN or infinite.

    Invariants:
        The norms of the adapters do not matter.
    """
    distances = np.clip(1.0 - _cosines(gram), 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def _cosines(gram: np.ndarray) -> np.ndarray:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ConfigError("similarity", "not a square matrix", got=gram.shape, expected="[K, K]")
    if not np.isfinite(gram).all():
        raise NonFiniteUpdateError("similarity", "an inner product is NaN or infinite", expected="finite numbers")
    is_moving = np.diagonal(gram) > 0.0
    norms = np.sqrt(np.where(is_moving, np.diagonal(gram), 1.0))
    return np.where(np.outer(is_moving, is_moving), gram / np.outer(norms, norms), 0.0)


def check_clients(clients: Sequence[str], gram: np.ndarray) -> None:
    """Raise unless a matrix has one row and one column per client, each client once.

    Args:
        clients: Client ids, in the order of the rows.
        gram: [K, K].

    Raises:
        EmptyCohortError: No clients.
        ConfigError: A client is named twice, or the sizes differ.
    """
    if not clients:
        raise EmptyCohortError("similarity", "there are no clients to compare")
    twice = sorted({client for client in clients if clients.count(client) > 1})
    if twice:
        raise ConfigError("similarity", "a client is named twice", got=", ".join(twice), expected="each client once")
    if gram.shape != (len(clients), len(clients)):
        raise ConfigError(
            "similarity", "matrix does not fit the clients", got=gram.shape, expected=(len(clients), len(clients))
        )


@dataclass(frozen=True)
class SimilarityMemory:
    """What is known of clients' similarities after some rounds, absent clients included.

    It keeps cosines rather than inner products: norms grow over a training, and late rounds would drown the early ones.

    Args:
        cosines: Two client ids, in sorted order -> their cosine; (c, c) -> 1 once c changed anything.
    """

    cosines: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def updated(self, clients: Sequence[str], gram: np.ndarray, decay: float = 0.5) -> "SimilarityMemory":
        """Move the cosines of all pairs seen in a round towards what the round showed.

        Args:
            clients: The round's clients, in the order of the rows.
            gram: [K, K] inner products of their adapters.
            decay: What the past counts against the round [fraction]; 0 forgets it.

        Returns:
            A new memory. A pair seen for the first time starts at its cosine; a pair not seen, or of which one client
            sent an update of norm zero, keeps the last known one.

        Raises:
            ConfigError: A client is named twice, the sizes differ, or `decay` is not in [0, 1).
            EmptyCohortError: No clients.
            NonFiniteUpdateError: An inner product is NaN or infinite.
        """
        check_clients(clients, gram)
        if not 0.0 <= decay < 1.0:
            raise ConfigError("similarity decay", "out of bounds", got=decay, expected="0 to below 1")
        cosines = np.clip(_cosines(gram), -1.0, 1.0)
        moving = np.flatnonzero(np.diagonal(gram) > 0.0).tolist()
        known = {**self.cosines, **{(clients[i], clients[i]): 1.0 for i in moving}}
        for i, j in combinations(moving, 2):
            key, seen = _key(clients[i], clients[j]), float(cosines[i, j])
            known[key] = decay * known.get(key, seen) + (1.0 - decay) * seen
        return SimilarityMemory(known)

    def matrix(self, clients: Sequence[str]) -> np.ndarray:
        """Return the known cosines of some clients, to be used as a Gram matrix.

        Args:
            clients: Client ids.

        Returns:
            [K, K] float64, symmetric; 0 where two clients were never seen together, and on the diagonal of a client
            that never changed anything.
        """
        rows = [[self.cosines.get(_key(row, column), 0.0) for column in clients] for row in clients]
        return np.array(rows, dtype=np.float64).reshape(len(clients), len(clients))

    def to_pairs(self) -> list[tuple[str, str, float]]:
        """Return the memory as plain values for a record, in sorted order."""
        return [(left, right, value) for (left, right), value in sorted(self.cosines.items())]

    @staticmethod
    def from_pairs(pairs: Iterable[tuple[str, str, float]]) -> "SimilarityMemory":
        """Rebuild a memory from a record.

        Args:
            pairs: As `to_pairs` gives them, in any order.

        Returns:
            The memory.

        Raises:
            RecordFormatError: A pair occurs twice, or a value is no cosine.
        """
        known: dict[tuple[str, str], float] = {}
        for left, right, value in pairs:
            if _key(left, right) in known or not -1.0 <= value <= 1.0:
                raise RecordFormatError(
                    f"similarity of {left} and {right}",
                    "cannot be restored",
                    got=value,
                    expected="one cosine from -1 to 1 per pair",
                )
            known[_key(left, right)] = value
        return SimilarityMemory(known)


def _key(left: str, right: str) -> tuple[str, str]:
    return (left, right) if left <= right else (right, left)
