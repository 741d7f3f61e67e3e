"""Which clients work on the same task, told from their adapters alone: one adapter per cluster instead of one for all.

Here: grouping clients and keeping the groups' names over rounds. Not here: how alike adapters are (`similarity`), and
averaging inside a cluster, which any aggregator does.

Legend of dimensions: K clients.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from tasks.aggregators.similarity import check_clients, cosine_distance
from tasks.errors import ConfigError

DECIMALS = 6
"""Digits of distances and silhouettes that count: finer differences are what rounding of uploaded factors makes."""

MIN_DISTANCE = 0.5
"""Mean cosine distance that chosen clusters are apart at least. A silhouette has no scale, so it would also part the
ranks of one task: rank 2 and rank 8 of the same update differ, and always alike, but rarely by this much."""


@dataclass(frozen=True)
class Clustering:
    """Which client is in which cluster.

    Args:
        labels: Client id -> cluster name: "cluster-1", "cluster-2", ...
        silhouette: How clear-cut the clusters are, -1 to 1; None where it is undefined: one cluster, or no two clients
            in the same one.
    """

    labels: Mapping[str, str]
    silhouette: float | None = None

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Cluster name -> its clients in sorted order; names by number."""
        return {
            name: tuple(sorted(client for client, label in self.labels.items() if label == name))
            for name in sorted(set(self.labels.values()), key=_by_number)
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Cluster name -> how many clients it has; a cluster of one is a personal model."""
        return {name: len(clients) for name, clients in self.members.items()}


def cluster(
    clients: Sequence[str],
    gram: np.ndarray,
    *,
    num_clusters: int,
    max_clusters: int = 8,
    previous: Mapping[str, str] = {},
    min_silhouette: float = 0.25,
) -> Clustering:
    """Group clients whose updates point the same way, and keep the names that the groups had.

    Average-linkage agglomeration on cosine distance. Clients whose update has norm zero show no direction: they do not
    take part, keep the name they had, or else join the largest cluster; in a round where all are so, newcomers share
    one cluster.

    Args:
        clients: The clients present, in the order of the rows.
        gram: [K, K] inner products of their adapters, of one round or from a `SimilarityMemory`.
        num_clusters: Clusters wanted, all clients apart if there are fewer; 0 chooses the number with the best
            silhouette among those whose clusters are `MIN_DISTANCE` apart. Two clients have none: they are one cluster.
        max_clusters: Most clusters that are chosen; no bound for a number that is given.
        previous: Client id -> cluster name so far, absent clients included: their names are not given to others.
        min_silhouette: One cluster is chosen unless the best silhouette is above this. Up to 0.25 a partition has "no
            substantial structure" by the customary reading, and splitting one task costs each half its partners.

    Returns:
        A label for each client present, and for no other. Names stay with as many clients as possible; a cluster none
        of whose clients keeps its name gets the lowest number that `previous` does not use.

    Raises:
        EmptyCohortError: No clients.
        ConfigError: A client is named twice, the matrix does not fit the clients, or a number is out of bounds.
        NonFiniteUpdateError: An inner product is NaN or infinite.

    Invariants:
        The order of clients is irrelevant, ties go to the client that sorts first. Norms and gauges do not matter.
        Same clusters -> same names.

    References:
        Siqi Ping, Yuzhu Mao, Yang Liu, Xiao-Ping Zhang, Wenbo Ding, "FL-TAC: Enhanced Fine-Tuning in Federated Learning
        via Low-Rank, Task-Specific Adapter Clustering", ICLR 2024 workshop on LLM agents,
        https://arxiv.org/abs/2404.15384. Read: the abstract and third-party notes; no code was found. We differ: inner
        products of updates (there, as far as we can tell, Euclidean distance of flattened factors, which depends on the
        gauge and needs equal ranks), average linkage (there K-means, which depends on its start), a number that may be
        chosen (there the known number of tasks), one adapter per client (there one per local task).
        Threshold: Leonard Kaufman, Peter J. Rousseeuw, "Finding Groups in Data", Wiley 1990; recalled, not re-read.
    """
    check_clients(clients, gram)
    _check_bounds(num_clusters, max_clusters)
    order = sorted(range(len(clients)), key=lambda i: clients[i])
    distances = np.round(cosine_distance(gram), DECIMALS)
    moving = [i for i in order if gram[i, i] > 0.0]
    groups, silhouette = _groups(distances[np.ix_(moving, moving)], num_clusters, max_clusters, min_silhouette)
    labels = _named([[clients[moving[i]] for i in group] for group in groups], previous)
    labels = _with_still(labels, [clients[i] for i in order if i not in moving], previous)
    return Clustering(dict(sorted(labels.items())), silhouette)


def _check_bounds(num_clusters: int, max_clusters: int) -> None:
    if num_clusters < 0 or max_clusters < 1:
        raise ConfigError(
            "clustering",
            "a number of clusters is out of bounds",
            got=f"num_clusters {num_clusters}, max_clusters {max_clusters}",
            expected="num_clusters of 0 (chosen) or more, max_clusters of 1 or more",
        )


def _groups(
    distances: np.ndarray, wanted: int, most: int, min_silhouette: float
) -> tuple[list[list[int]], float | None]:
    """Partition rows; groups are sorted, and ordered by their first row."""
    rows = len(distances)
    if rows < 2:
        return [[i] for i in range(rows)], None
    tree = _tree(distances)
    if wanted:
        groups = _cut(tree, min(wanted, rows))
        return groups, _silhouette(distances, groups)
    groups, best = _cut(tree, 1), None
    for number in range(2, min(most, rows - 1) + 1):
        # The merge that a cut leaves out first joins its two closest groups.
        if tree[rows - number, 2] < MIN_DISTANCE:
            break
        candidate = _cut(tree, number)
        score = _silhouette(distances, candidate)
        if score is not None and score > (min_silhouette if best is None else best):
            groups, best = candidate, score
    return groups, best


def _tree(distances: np.ndarray) -> np.ndarray:
    """Return the merges, nearest first: [K - 1, 4] as SciPy writes them (two groups, their distance, their size)."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    return linkage(squareform(distances, checks=False), method="average")


def _cut(tree: np.ndarray, number: int) -> list[list[int]]:
    # SciPy's own cut by number gives fewer groups where merges tie; leaving out the last merges always gives this many.
    rows = len(tree) + 1
    groups = {i: [i] for i in range(rows)}
    for step, (left, right) in enumerate(tree[: rows - number, :2].astype(int).tolist()):
        groups[rows + step] = sorted(groups.pop(left) + groups.pop(right))
    return sorted(groups.values())


def _silhouette(distances: np.ndarray, groups: Sequence[Sequence[int]]) -> float | None:
    if not 2 <= len(groups) < len(distances):
        return None
    from sklearn.metrics import silhouette_score

    group_of = np.empty(len(distances), dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[list(group)] = number
    return round(float(silhouette_score(distances, group_of, metric="precomputed")), DECIMALS)


def _named(groups: Sequence[Sequence[str]], previous: Mapping[str, str]) -> dict[str, str]:
    """Name groups so that as many clients as possible keep their cluster's name (Hungarian assignment)."""
    from scipy.optimize import linear_sum_assignment

    known = sorted(set(previous.values()), key=_by_number)
    kept = np.array([[sum(previous.get(c) == name for c in group) for name in known] for group in groups])
    names: dict[int, str] = {}
    if kept.size:
        for group, name in zip(*linear_sum_assignment(kept, maximize=True), strict=True):
            # Without a common client the name would be somebody else's: an absent client's, or a dissolved cluster's.
            if kept[group, name]:
                names[int(group)] = known[name]
    fresh = _fresh_names(known)
    for i in range(len(groups)):
        if i not in names:
            names[i] = next(fresh)
    return {client: names[i] for i, group in enumerate(groups) for client in group}


def _with_still(labels: Mapping[str, str], still: Sequence[str], previous: Mapping[str, str]) -> dict[str, str]:
    everyone = {**labels, **{client: previous[client] for client in still if client in previous}}
    sizes = Counter(everyone.values())
    home = min(
        sizes, key=lambda name: (-sizes[name], _by_number(name)), default=next(_fresh_names(set(previous.values())))
    )
    return {**dict.fromkeys(still, home), **everyone}


def _fresh_names(used: Collection[str]) -> Iterator[str]:
    return (name for name in (f"cluster-{number}" for number in count(1)) if name not in used)


def _by_number(name: str) -> tuple[int, str]:
    # "cluster-10" comes after "cluster-9".
    return len(name), name
