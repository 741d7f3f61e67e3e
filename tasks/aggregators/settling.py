"""Clusters over many rounds: clients stay where they are unless a round speaks clearly for something else.

What training adds to an adapter that fits its task is noise, and noise shows no clusters: that is no reason to mix
tasks that were told apart, or to part one. `clusters` groups one round's clients; here is what a run makes of it.

Legend of dimensions: K clients.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np

from tasks.aggregators.clusters import MIN_DISTANCE, Clustering, cluster
from tasks.aggregators.similarity import cosine_distance

MIN_SILHOUETTE = 0.25
"""Up to this a partition has "no substantial structure" by the customary reading; see `cluster`."""
APART, OPPOSED = 0.8, 1.0
"""Mean cosine distance of clusters from which they count as different tasks, and from which a cluster that already has
an adapter is parted. Measured on small networks: contradicting tasks are 1.0 to 1.2 apart in every round, the ranks of
one task up to 0.6 in the first ones and up to 0.95 later, when low ranks still learn what high ranks know."""


def settle(
    clients: Sequence[str],
    cosines: np.ndarray,
    *,
    num_clusters: int,
    max_clusters: int,
    previous: Mapping[str, str],
) -> Clustering:
    """Group a round's clients, moving those that have a cluster only where the evidence is clear.

    Args:
        clients: The clients present, in the order of the rows.
        cosines: [K, K] cosines of what their training added, smoothed over rounds.
        num_clusters: Clusters wanted; 0 chooses.
        max_clusters: Most clusters that are chosen.
        previous: Client id -> cluster name so far, absent clients included.

    Returns:
        A label for each client present, and the silhouette that the round itself showed. Clusters merge where they are
        no further apart than one task is; they form where they are `APART`; one that has an adapter is parted only
        where the parts are `OPPOSED`. Without evidence clients stay, newcomers join the nearest client's cluster, and
        where nobody has one, the number that was given decides, or one cluster.

    Raises:
        ConfigError, EmptyCohortError, NonFiniteUpdateError: As `cluster`.
    """
    group = partial(cluster, clients, cosines, max_clusters=max_clusters, previous=previous)
    found = group(num_clusters=num_clusters, min_silhouette=MIN_SILHOUETTE)
    labels = _settled(found, cosine_distance(cosines), clients, previous)
    if labels is None:
        labels = group(num_clusters=num_clusters or 1).labels
    return Clustering(labels, found.silhouette)


def _settled(
    found: Clustering, distances: np.ndarray, clients: Sequence[str], known: Mapping[str, str]
) -> Mapping[str, str] | None:
    """Return client -> cluster; None where no client is known and nothing is evident."""
    here = {client: known[client] for client in clients if client in known}
    if _is_evident(found, distances, clients, here):
        return found.labels
    if not here:
        return None
    row = {client: i for i, client in enumerate(clients)}
    nearest = {
        c: min(here, key=lambda other, c=c: (distances[row[c], row[other]], other)) for c in clients if c not in here
    }
    return {client: here[nearest.get(client, client)] for client in clients}


def _is_evident(found: Clustering, distances: np.ndarray, clients: Sequence[str], here: Mapping[str, str]) -> bool:
    if found.silhouette is not None and found.silhouette > MIN_SILHOUETTE:
        # A number that was given must not part one task because all clients of another are away.
        is_parting = len({(here[client], found.labels[client]) for client in here}) > len(set(here.values()))
        return min(_gaps(clients, found.labels, distances)) >= (OPPOSED if is_parting else APART)
    return len(found.members) == 1 and max(_gaps(clients, here, distances), default=0.0) < MIN_DISTANCE


def _gaps(clients: Sequence[str], labels: Mapping[str, str], distances: np.ndarray) -> list[float]:
    """Return the mean distance of every two clusters."""
    rows = {
        name: [i for i, client in enumerate(clients) if labels.get(client) == name] for name in set(labels.values())
    }
    return [float(distances[np.ix_(one, other)].mean()) for one, other in combinations(rows.values(), 2)]
