"""How partitions deal rows to clients at random or by label: one function each, numpy arrays in and out.

Client i's part is item i of the result. What holds for all of them (ids, least sizes, counts) is checked in
`partitions.py`. Legend: N examples, C distinct labels, K clients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.errors import DataError

MAX_DRAWS = 100
MAX_ALPHA = 1e6


@dataclass(frozen=True, eq=False)
class Pool:
    """What there is to share out.

    Args:
        num_examples: N.
        labels: [N] label numbers, or None.
        columns: Column name -> [N] values.
    """

    num_examples: int
    labels: np.ndarray | None
    columns: Mapping[str, Sequence | np.ndarray]


@dataclass(frozen=True, eq=False)
class Deal:
    """What each client is dealt.

    Args:
        parts: Rows of client 0, 1, ..., in any order.
        origins: Where each client's rows come from, if the data say so.
    """

    parts: Sequence[np.ndarray]
    origins: Sequence[str] = ()


def iid(pool: Pool, rng: np.random.Generator, *, num_clients: int) -> Deal:
    """Shuffle and cut into parts whose sizes differ by one at most.

    Args:
        pool: What there is to share out.
        rng: Source of the shuffle.
        num_clients: K.

    Returns:
        All rows, at random.
    """
    return Deal(np.array_split(rng.permutation(pool.num_examples), num_clients))


def dirichlet(pool: Pool, rng: np.random.Generator, *, num_clients: int, alpha: float, min_examples: int) -> Deal:
    """Give each label to the clients in shares drawn from a symmetric Dirichlet distribution.

    Args:
        pool: What there is to share out.
        rng: Source of shares and shuffles.
        num_clients: K.
        alpha: Concentration, above 0, at most 1e6; small is more skewed.
        min_examples: The draw is repeated until every client has this many, 100 times at most.

    Returns:
        All rows.

    Raises:
        DataError: No labels, alpha out of bounds, or no draw leaves every client enough.

    References:
        T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", arXiv:1909.06335, 2019, use a Dirichlet draw per client; as in later work (M.
        Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019) the draw
        here is per label.
    """
    if not 0 < alpha <= MAX_ALPHA:
        raise DataError("data.partition.alpha", "out of bounds", got=alpha, expected=f"above 0, at most {MAX_ALPHA:g}")
    groups = _rows_by_label(pool, rng, "dirichlet")
    sizes = np.array([len(rows) for rows in groups])
    for _ in range(MAX_DRAWS):
        shares = rng.dirichlet(np.full(num_clients, alpha), size=len(groups))
        # Cutting at the plain sums would round against the first client of every label; a random offset is fair.
        offsets = rng.random((len(groups), 1))
        bounds = np.floor(np.cumsum(shares, axis=1) * sizes[:, None] + offsets).astype(np.int64)
        # Float sums may end a hair beside 1.
        bounds = np.minimum(bounds, sizes[:, None])
        bounds[:, -1] = sizes
        counts = np.diff(bounds, axis=1, prepend=0)
        if counts.sum(axis=0).min() >= min_examples:
            cuts = [np.split(rows, bound[:-1]) for rows, bound in zip(groups, bounds, strict=True)]
            return Deal([np.concatenate(part) for part in zip(*cuts, strict=True)])
    raise DataError(
        "data.partition",
        f"dirichlet left a client with fewer than {min_examples} examples in each of {MAX_DRAWS} draws",
        got=f"data.partition.alpha {alpha:g}, data.partition.num_clients {num_clients}, {sizes.sum()} examples",
        remedy="raise data.partition.alpha, ask for fewer clients, or lower data.partition.min_examples",
    )


def pathological(pool: Pool, rng: np.random.Generator, *, num_clients: int, labels_per_client: int) -> Deal:
    """Give each client exactly so many labels, and each label in equal parts to the clients that hold it.

    Labels go to clients in turn, those held by the fewest first and ties at random, so that every label has a
    holder as soon as K times the labels per client reaches C; with fewer, the rows of unheld labels stay
    unused.

    Args:
        pool: What there is to share out.
        rng: Source of ties and shuffles.
        num_clients: K.
        labels_per_client: Labels each client holds, 1 to C.

    Returns:
        Rows of the labels that somebody holds.

    Raises:
        DataError: No labels, the number of labels per client is out of bounds, or a label has too few rows.

    References:
        B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        AISTATS 2017, section 3, name the pathological split; its shards are the partition `shards`, this is
        the variant with exact numbers of labels that later work uses.
    """
    groups = _rows_by_label(pool, rng, "pathological")
    if not 1 <= labels_per_client <= len(groups):
        raise DataError(
            "data.partition.labels_per_client",
            "out of bounds",
            got=labels_per_client,
            expected=f"1 to {len(groups)}, the number of labels in the train split",
        )
    held = np.zeros(len(groups), dtype=np.int64)
    holders: list[list[int]] = [[] for _ in groups]
    for client in range(num_clients):
        chosen = np.lexsort((rng.random(len(groups)), held))[:labels_per_client]
        held[chosen] += 1
        for label in chosen:
            holders[label].append(client)
    return _deal_labels(groups, holders, num_clients, "pathological")


def shards(pool: Pool, rng: np.random.Generator, *, num_clients: int, shards_per_client: int) -> Deal:
    """Sort by label, cut into equal shards, and deal each client so many at random.

    Args:
        pool: What there is to share out.
        rng: Source of shuffles; rows of one label are in random order before the cut.
        num_clients: K.
        shards_per_client: Shards each client is dealt, 1 or more.

    Returns:
        All rows; sizes of shards differ by one at most.

    Raises:
        DataError: No labels, or more shards than examples.

    References:
        B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        AISTATS 2017, section 3: 200 shards of 300 MNIST images, two per client. As published.
    """
    rows = np.concatenate(_rows_by_label(pool, rng, "shards"))
    most = len(rows) // num_clients
    if not 1 <= shards_per_client <= most:
        raise DataError(
            "data.partition.shards_per_client",
            f"cannot cut {len(rows)} examples into so many shards for {num_clients} clients",
            got=shards_per_client,
            expected=f"1 to {most}",
        )
    pieces = np.array_split(rows, num_clients * shards_per_client)
    order = rng.permutation(len(pieces)).reshape(num_clients, shards_per_client)
    return Deal([np.concatenate([pieces[piece] for piece in hand]) for hand in order])


def staircase(pool: Pool, rng: np.random.Generator, *, num_clients: int) -> Deal:
    """Give client i the first labels up to its step, each label in equal parts to the clients that hold it.

    Client i of K holds the first ceil((i + 1) C / K) labels: with ten clients and ten labels, labels 0 to i.
    Where a label does not divide evenly, later clients hold the extra rows.

    Args:
        pool: What there is to share out.
        rng: Source of the shuffle within a label.
        num_clients: K.

    Returns:
        All rows; the last client holds every label.

    Raises:
        DataError: No labels, or a label has fewer rows than clients that should hold it.

    References:
        S. Chen, O. Tavallaie, N. Nazemi, A. Y. Zomaya, "RBLA: Rank-Based-LoRA-Aggregation for Fine-tuning
        Heterogeneous Models in FLaaS", arXiv:2408.08699, 2024. The table is that of the authors' code; other
        numbers of clients and labels are our extension.
    """
    groups = _rows_by_label(pool, rng, "staircase")
    steps = [-(-(client + 1) * len(groups) // num_clients) for client in range(num_clients)]
    holders = [[client for client, step in enumerate(steps) if step > label] for label in range(len(groups))]
    return _deal_labels(groups, holders, num_clients, "staircase")


def _rows_by_label(pool: Pool, rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """Return the rows of each label that occurs, labels ascending, rows shuffled."""
    if pool.labels is None:
        raise DataError(
            "data.partition",
            f"{name} shares out by label, and these data have none",
            remedy="set data.columns.label, or use iid or natural",
        )
    shuffled = rng.permutation(pool.num_examples)
    ordered = shuffled[np.argsort(pool.labels[shuffled], kind="stable")]
    _, counts = np.unique(pool.labels, return_counts=True)
    return np.split(ordered, np.cumsum(counts)[:-1])


def _deal_labels(groups: Sequence[np.ndarray], holders: Sequence[Sequence[int]], num_clients: int, name: str) -> Deal:
    """Cut each label's rows into equal parts, one per holder."""
    hands: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label, (rows, clients) in enumerate(zip(groups, holders, strict=True)):
        if len(rows) < len(clients):
            raise DataError(
                "data.partition",
                f"{name} gives the label at position {label} to {len(clients)} of {num_clients} clients",
                got=f"{len(rows)} examples of it",
                expected="at least one for each of these clients",
                remedy="ask for fewer clients (data.partition.num_clients), or give more data",
            )
        bounds = np.arange(1, len(clients)) * len(rows) // max(len(clients), 1)
        for client, part in zip(clients, np.split(rows, bounds), strict=False):
            hands[client].append(part)
    return Deal([np.concatenate(hand) for hand in hands])
