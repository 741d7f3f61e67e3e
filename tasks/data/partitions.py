"""Sharing a train split out to clients: who holds which rows.

Here are the request, the result, the table of partitions and the checks that hold for all of them; how each
one deals is in `deals.py`. Nothing here reads data or knows about models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.data import deals
from tasks.data.deals import Deal, Pool
from tasks.data.natural import natural
from tasks.errors import DataError, UnknownNameError


@dataclass(frozen=True)
class PartitionSpec:
    """How a train split is shared out.

    Args:
        name: A name of `PARTITIONS`.
        num_clients: Number of clients; 0 is for `natural` alone and means one per distinct value.
        alpha: Concentration of `dirichlet`; 0.1 is severe skew, 0.5 usual, 1 mild, 100 next to none.
        labels_per_client: Labels each client holds in `pathological`.
        shards_per_client: Shards each client is dealt in `shards`.
        column: Column whose values are the clients of `natural`.
        min_examples: Fewest examples a client may hold, 1 or more.
    """

    name: str
    num_clients: int
    alpha: float = 0.5
    labels_per_client: int = 2
    shards_per_client: int = 2
    column: str = ""
    min_examples: int = 1


@dataclass(frozen=True, eq=False)
class Partition:
    """Who holds which rows of the train split.

    Args:
        indices: Client id ("c00", "c01", ...) -> sorted rows, int64; no row belongs to two clients.
        origins: Client id -> value of the column in `natural`; empty for the other partitions.
    """

    indices: Mapping[str, np.ndarray]
    origins: Mapping[str, str] = field(default_factory=dict)


def _iid(spec: PartitionSpec, pool: Pool, rng: np.random.Generator) -> Deal:
    return deals.iid(pool, rng, num_clients=spec.num_clients)


def _dirichlet(spec: PartitionSpec, pool: Pool, rng: np.random.Generator) -> Deal:
    return deals.dirichlet(pool, rng, num_clients=spec.num_clients, alpha=spec.alpha, min_examples=spec.min_examples)


def _pathological(spec: PartitionSpec, pool: Pool, rng: np.random.Generator) -> Deal:
    return deals.pathological(pool, rng, num_clients=spec.num_clients, labels_per_client=spec.labels_per_client)


def _shards(spec: PartitionSpec, pool: Pool, rng: np.random.Generator) -> Deal:
    return deals.shards(pool, rng, num_clients=spec.num_clients, shards_per_client=spec.shards_per_client)


def _staircase(spec: PartitionSpec, pool: Pool, rng: np.random.Generator) -> Deal:
    return deals.staircase(pool, rng, num_clients=spec.num_clients)


def _natural(spec: PartitionSpec, pool: Pool, rng: np.random.Generator) -> Deal:
    del rng  # nothing is drawn: the data say who holds what
    return natural(pool, num_clients=spec.num_clients, column=spec.column)


PARTITIONS: Mapping[str, Callable[[PartitionSpec, Pool, np.random.Generator], Deal]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "shards": _shards,
    "staircase": _staircase,
    "natural": _natural,
}


def partition(
    spec: PartitionSpec,
    *,
    labels: np.ndarray | None,
    columns: Mapping[str, Sequence | np.ndarray],
    seed: int,
    num_examples: int | None = None,
) -> Partition:
    """Share a train split out to clients.

    Args:
        spec: Which partition, over how many clients.
        labels: [N] int64 label numbers; None for data without labels, which only `iid` and `natural` can
            share out.
        columns: Column name -> [N] values, for `natural`.
        seed: Seed of the draw; not negative. The same seed, spec and data give the same partition.
        num_examples: N, where there are neither labels nor columns to count.

    Returns:
        Rows per client, in the order of client ids. `iid`, `dirichlet`, `shards`, `staircase` and a `natural`
        of all values use every row; `pathological` leaves out labels that nobody was given, `natural` clients
        beyond the number asked for.

    Raises:
        UnknownNameError: No such partition.
        DataError: The data cannot be shared out like that, or a client would hold too little; names the
            field.

    Invariants:
        No row is used twice; no client holds fewer than `min_examples` rows.
    """
    if spec.name not in PARTITIONS:
        raise UnknownNameError("data.partition", spec.name, PARTITIONS)
    pool = Pool(_count(labels, columns, num_examples), labels, columns)
    _check_counts(spec, pool.num_examples)
    deal = PARTITIONS[spec.name](spec, pool, np.random.default_rng(seed))
    width = max(2, len(str(len(deal.parts) - 1)))
    ids = [f"c{number:0{width}d}" for number in range(len(deal.parts))]
    indices = {client: np.sort(part).astype(np.int64) for client, part in zip(ids, deal.parts, strict=True)}
    _check_sizes(spec, indices)
    origins = dict(zip(ids, deal.origins, strict=True)) if deal.origins else {}
    return Partition(indices, origins)


def _count(labels: np.ndarray | None, columns: Mapping[str, Sequence | np.ndarray], num_examples: int | None) -> int:
    counts = {len(values) for values in (labels, *columns.values()) if values is not None}
    counts |= {num_examples} if num_examples is not None else set()
    if len(counts) != 1:
        raise DataError(
            "data.partition",
            "labels, columns and number of examples do not agree on how much there is to share out",
            got=sorted(counts) or "neither labels nor columns",
            expected="one number",
        )
    return counts.pop()


def _check_counts(spec: PartitionSpec, num_examples: int) -> None:
    if spec.min_examples < 1:
        raise DataError("data.partition.min_examples", "is below 1", got=spec.min_examples, expected="1 or more")
    lowest = 0 if spec.name == "natural" else 1
    if spec.num_clients < lowest:
        raise DataError(
            "data.partition.num_clients",
            f"too few clients for partition {spec.name!r}",
            got=spec.num_clients,
            expected=f"{lowest} or more",
        )
    if spec.num_clients * spec.min_examples > num_examples:
        raise DataError(
            "data.partition.num_clients",
            f"{num_examples} examples are too few for {spec.num_clients} clients of at least {spec.min_examples} each",
            got=spec.num_clients,
            expected=f"at most {num_examples // spec.min_examples}",
            remedy="ask for fewer clients, or give more data (data.limit may be set too low)",
        )


def _check_sizes(spec: PartitionSpec, indices: Mapping[str, np.ndarray]) -> None:
    client = min(indices, key=lambda name: len(indices[name]))
    if len(indices[client]) < spec.min_examples:
        raise DataError(
            "data.partition",
            f"{spec.name} over {len(indices)} clients gives client {client} too little",
            got=f"{len(indices[client])} examples",
            expected=f"at least {spec.min_examples} (data.partition.min_examples)",
            remedy="lower data.partition.num_clients, give more data, or lower data.partition.min_examples",
        )
