"""Clusters over rounds: clear evidence moves clients, noise does not."""

import numpy as np
import pytest

from tasks.aggregators.settling import settle

CLIENTS = ["c0", "c1", "c2", "c3"]
TOLD_APART = {"c0": "cluster-1", "c1": "cluster-1", "c2": "cluster-2", "c3": "cluster-2"}
TOGETHER = dict.fromkeys(CLIENTS, "cluster-1")


def cosines(within: float, between: float, clients: int = 4) -> np.ndarray:
    """Two tasks of two clients each: how alike updates are inside a task, and across."""
    task = np.arange(clients) // 2
    found = np.where(task[:, None] == task[None, :], within, between)
    np.fill_diagonal(found, 1.0)
    return found


def labels(matrix: np.ndarray, *, num_clusters: int = 0, previous=None, clients=CLIENTS) -> dict[str, str]:
    found = settle(clients, matrix, num_clusters=num_clusters, max_clusters=8, previous=previous or {})
    return dict(found.labels)


@pytest.mark.parametrize("num_clusters", [0, 2])
def test_opposed_tasks_are_told_apart_in_the_first_round(num_clusters):
    assert labels(cosines(0.9, -0.1), num_clusters=num_clusters) == TOLD_APART


def test_one_task_stays_one_cluster_where_the_number_is_chosen():
    assert labels(cosines(0.9, 0.5)) == TOGETHER


def test_a_number_that_was_given_decides_where_nobody_has_a_cluster():
    assert len(set(labels(cosines(0.9, 0.6), num_clusters=2).values())) == 2


@pytest.mark.parametrize("num_clusters", [0, 2])
@pytest.mark.parametrize("previous", [TOLD_APART, TOGETHER])
def test_noise_moves_nobody(num_clusters, previous):
    assert labels(cosines(0.1, 0.02), num_clusters=num_clusters, previous=previous) == previous


def test_clusters_that_turn_out_to_be_one_task_merge():
    assert set(labels(cosines(0.95, 0.9), previous=TOLD_APART).values()) == {"cluster-1"}


def test_a_cluster_is_parted_only_by_opposed_parts():
    assert labels(cosines(0.9, 0.15), previous=TOGETHER) == TOGETHER
    assert len(set(labels(cosines(0.9, -0.1), previous=TOGETHER).values())) == 2


def test_a_number_that_was_given_parts_no_task_because_another_is_away():
    both = {**TOGETHER, "c9": "cluster-2"}
    assert labels(cosines(0.9, 0.3), num_clusters=2, previous=both) == TOGETHER


def test_a_newcomer_joins_the_nearest_clients_cluster_while_nothing_is_evident():
    known = {client: label for client, label in TOLD_APART.items() if client != "c3"}
    assert labels(cosines(0.2, 0.02), previous=known) == TOLD_APART


def test_the_order_of_clients_is_irrelevant():
    order = [2, 0, 3, 1]
    matrix = cosines(0.9, -0.1)[np.ix_(order, order)]
    assert labels(matrix, previous=TOLD_APART, clients=[CLIENTS[i] for i in order]) == TOLD_APART
