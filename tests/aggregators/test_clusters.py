"""Clients of one task land together whatever their ranks, and clusters keep their names over rounds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import truncate
from tasks.aggregators.clusters import Clustering, cluster
from tasks.aggregators.similarity import SimilarityMemory, cosine_distance, gram
from tasks.errors import ConfigError, EmptyCohortError, NonFiniteUpdateError
from tests.strategies import normal

laws = settings(max_examples=40, derandomize=True)
SIZE = 20
ranks = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def task(seed: int, inputs: slice = slice(None)) -> torch.Tensor:
    """A task's update [SIZE, SIZE] of rank 6, on some inputs only: tasks on other inputs are orthogonal to it."""
    update = normal((SIZE, 6), seed, dtype=torch.float64) @ normal((6, SIZE), seed + 1, dtype=torch.float64)
    kept = torch.zeros_like(update)
    kept[:, inputs] = update[:, inputs]
    return kept


def client(update: torch.Tensor, rank: int, seed: int, *, noise: float = 0.0) -> LoraAdapter:
    """A client's best cut of its task's update plus its own, in factors of a random gauge."""
    own = update + noise * update.std() * normal(update.shape, seed, dtype=torch.float64)
    cut = truncate(LoraPair(own, torch.eye(SIZE, dtype=torch.float64)), rank)
    g = normal((rank, rank), seed + 1, dtype=torch.float64) + 4 * torch.eye(rank, dtype=torch.float64)
    return LoraAdapter({"m": LoraPair(g @ cut.a, cut.b @ torch.linalg.inv(g) / 2, 2.0)})


def names(count: int) -> list[str]:
    return [f"c{i:02d}" for i in range(count)]


def blocks(*groups: str, within: float = 0.9) -> tuple[list[str], np.ndarray]:
    """Clients named by letters, cosine `within` inside a group and 0 across; a group "-ab" has zero updates."""
    owner = {c: i for i, group in enumerate(groups) for c in group if c != "-"}
    norms = {c: 0.0 if groups[i].startswith("-") else 1.0 for c, i in owner.items()}
    cosine = [[1.0 if x == y else within * (owner[x] == owner[y]) for y in owner] for x in owner]
    scale = np.array(list(norms.values()))
    return list(owner), np.array(cosine) * np.outer(scale, scale)


def parts(clustering: Clustering) -> set[tuple[str, ...]]:
    return set(clustering.members.values())


@laws
@given(ranks, ranks, st.integers(0, 2**16))
def test_orthogonal_tasks_are_separated_for_any_mix_of_ranks(first, second, seed):
    left, right = task(seed, slice(0, 9)), task(seed + 2, slice(9, SIZE))
    adapters = [client(left, r, seed + i) for i, r in enumerate(first)]
    adapters += [client(right, r, seed + 100 + i) for i, r in enumerate(second)]
    clients = names(len(adapters))
    found = cluster(clients, gram(adapters), num_clusters=2)
    assert parts(found) == {tuple(clients[: len(first)]), tuple(clients[len(first) :])}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_tasks", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_chosen_number_is_the_number_of_tasks(num_tasks, seed, noise):
    tasks = [task(1000 * seed + 10 * t) for t in range(num_tasks)]
    adapters = [client(tasks[i % num_tasks], (2, 4, 8)[i // 3 % 3], 50 * i + seed, noise=noise) for i in range(12)]
    found = cluster(names(12), gram(adapters), num_clusters=0)
    assert parts(found) == {tuple(names(12)[t::num_tasks]) for t in range(num_tasks)}
    assert (found.silhouette is None) == (num_tasks == 1)


@pytest.mark.parametrize("seed", range(4))
def test_ranks_of_one_task_are_not_chosen_as_clusters(seed):
    adapters = [client(task(seed), rank, 50 * i, noise=0.05) for i, rank in enumerate((2, 2, 2, 6, 6, 6))]
    matrix = gram(adapters)
    by_rank = cluster(names(6), matrix, num_clusters=2)
    assert parts(by_rank) == {tuple(names(6)[:3]), tuple(names(6)[3:])}
    assert by_rank.silhouette is not None
    assert by_rank.silhouette > 0.25
    assert len(cluster(names(6), matrix, num_clusters=0).sizes) == 1


def random_gram(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 5))
    return vectors @ vectors.T


def naive_average_linkage(distances: np.ndarray, number: int) -> set[tuple[int, ...]]:
    groups: list[tuple[int, ...]] = [(i,) for i in range(len(distances))]
    while len(groups) > number:

        def apart(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
            return sum(distances[i, j] for i in pair[0] for j in pair[1]) / (len(pair[0]) * len(pair[1]))

        left, right = min(itertools.combinations(groups, 2), key=apart)
        groups = [g for g in groups if g not in (left, right)] + [tuple(sorted(left + right))]
    return set(groups)


@laws
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**16))
def test_clusters_are_those_of_average_linkage(count, number, seed):
    matrix = random_gram(count, seed)
    expected = naive_average_linkage(cosine_distance(matrix), min(number, count))
    found = cluster(names(count), matrix, num_clusters=number)
    assert parts(found) == {tuple(names(count)[i] for i in group) for group in expected}


@laws
@given(st.integers(2, 8), st.integers(0, 4), st.integers(0, 2**16), st.randoms(use_true_random=False))
def test_order_and_norms_of_clients_do_not_matter(count, number, seed, random):
    matrix, clients = random_gram(count, seed), names(count)
    previous = {c: f"cluster-{random.randint(1, 3)}" for c in clients if random.random() < 0.7}
    order = random.sample(range(count), count)
    scale = np.array([random.uniform(0.1, 10.0) for _ in order])
    shuffled = matrix[np.ix_(order, order)] * np.outer(scale, scale)
    found = cluster([clients[i] for i in order], shuffled, num_clusters=number, previous=previous)
    assert found == cluster(clients, matrix, num_clusters=number, previous=previous)


@pytest.mark.parametrize("number", [0, 2, 3])
def test_identical_tasks_in_random_gauges_tie_whatever_the_rounding(number):
    adapters = [client(task(5), 6, 50 * i) for i in range(5)]
    found = []
    for seed in range(8):
        rounding = 1e-10 * np.random.default_rng(seed).normal(size=(5, 5))
        found.append(cluster(names(5), gram(adapters) * (1.0 + rounding + rounding.T), num_clusters=number))
    assert len(found[0].sizes) == max(number, 1)
    assert all(one == found[0] for one in found)


def test_silhouette_matches_the_worked_number():
    # Within 0.2, across 1 for everyone: (1 - 0.2) / 1.
    found = cluster(*blocks("ab", "cd", within=0.8), num_clusters=0)
    assert found == Clustering(dict(zip("abcd", ["cluster-1"] * 2 + ["cluster-2"] * 2, strict=True)), 0.8)
    assert len(cluster(*blocks("ab", "cd", within=0.8), num_clusters=0, min_silhouette=0.8).sizes) == 1


def test_chosen_number_is_bounded():
    four = blocks("ab", "cd", "ef", "gh")
    assert len(cluster(*four, num_clusters=0).sizes) == 4
    assert len(cluster(*four, num_clusters=0, max_clusters=3).sizes) <= 3
    assert len(cluster(*four, num_clusters=0, max_clusters=1).sizes) == 1


@pytest.mark.parametrize(("wanted", "got"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_given_number_is_met_even_where_all_are_alike(wanted, got):
    found = cluster(*blocks("abc", within=1.0), num_clusters=wanted)
    assert len(found.sizes) == got
    assert (found.silhouette is None) == (got in (1, 3))


def test_one_or_two_clients_are_one_cluster_unless_told():
    assert cluster(["a"], np.eye(1), num_clusters=0).labels == {"a": "cluster-1"}
    assert cluster(["a"], np.eye(1), num_clusters=3).labels == {"a": "cluster-1"}
    assert cluster(["a", "b"], np.eye(2), num_clusters=0).sizes == {"cluster-1": 2}
    assert cluster(["a", "b"], np.eye(2), num_clusters=2).sizes == {"cluster-1": 1, "cluster-2": 1}


def test_names_count_beyond_nine_in_order():
    assert list(cluster(names(11), np.eye(11), num_clusters=11).sizes) == [f"cluster-{i}" for i in range(1, 12)]


def test_names_stay_when_one_client_moves():
    before = cluster(*blocks("abc", "def"), num_clusters=2).labels
    assert before == {**dict.fromkeys("abc", "cluster-1"), **dict.fromkeys("def", "cluster-2")}
    after = cluster(*blocks("bc", "adef"), num_clusters=2, previous=before)
    # By first client the larger group would be cluster-1 now.
    assert after.members == {"cluster-1": ("b", "c"), "cluster-2": ("a", "d", "e", "f")}


def test_names_keep_as_many_clients_as_possible():
    previous = {**dict.fromkeys("abcfg", "cluster-1"), **dict.fromkeys("de", "cluster-2")}
    # Overlaps [[3, 2], [2, 0]]: to keep the 3 would keep only 3 in all, crossing over keeps 2 + 2.
    found = cluster(*blocks("abcde", "fg"), num_clusters=2, previous=previous)
    assert found.members == {"cluster-1": ("f", "g"), "cluster-2": ("a", "b", "c", "d", "e")}


def test_new_cluster_gets_the_lowest_number_nobody_has():
    previous = {**dict.fromkeys("ab", "cluster-1"), "absent": "cluster-2", **dict.fromkeys("cd", "cluster-4")}
    found = cluster(*blocks("ab", "cd", "ef", "gh"), num_clusters=4, previous=previous)
    assert found.members == {
        "cluster-1": ("a", "b"),
        "cluster-3": ("e", "f"),
        "cluster-4": ("c", "d"),
        "cluster-5": ("g", "h"),
    }


@laws
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**16), st.data())
def test_naming_is_the_best_of_all_and_never_shared(count, number, seed, data):
    clients = names(count)
    old = [f"cluster-{i}" for i in range(1, 5)]
    previous = data.draw(st.dictionaries(st.sampled_from([*clients, "absent"]), st.sampled_from(old)))
    found = cluster(clients, random_gram(count, seed), num_clusters=number, previous=previous)
    groups = list(found.members.values())
    assert len(groups) == min(number, count)
    best = max(
        sum(previous.get(c) == name for group, name in zip(groups, trial, strict=True) for c in group)
        for trial in itertools.permutations(old, len(groups))
    )
    assert sum(previous.get(c) == found.labels[c] for c in clients) == best
    for name, group in found.members.items():
        assert name not in previous.values() or any(previous.get(c) == name for c in group)


def test_clients_without_a_direction_stay_where_they_were_or_join_the_largest():
    clients, matrix = blocks("ab", "cdei", "-fgh")
    found = cluster(clients, matrix, num_clusters=2, previous={"a": "cluster-1", "f": "cluster-1", "g": "cluster-7"})
    assert found.members == {"cluster-1": ("a", "b", "f"), "cluster-2": ("c", "d", "e", "h", "i"), "cluster-7": ("g",)}


def test_round_without_any_direction_is_one_cluster_or_the_last_ones():
    clients, matrix = blocks("-abc")
    assert cluster(clients, matrix, num_clusters=2) == Clustering(dict.fromkeys("abc", "cluster-1"))
    previous = {"a": "cluster-1", "b": "cluster-3", "c": "cluster-3"}
    assert cluster(clients, matrix, num_clusters=0, previous=previous).labels == previous
    assert cluster(clients, matrix, num_clusters=0, previous={"x": "cluster-1"}).sizes == {"cluster-2": 3}


@pytest.mark.parametrize("wanted", [0, 2])
def test_clusters_stay_while_one_client_after_another_is_missing(wanted):
    tasks = [task(1), task(11)]
    everyone, memory, labels = names(8), SimilarityMemory(), {}
    for round_index in range(1, 9):
        present = [c for i, c in enumerate(everyone) if i != 8 - round_index]
        adapters = [client(tasks[int(c[1:]) % 2], 4, 997 * round_index + int(c[1:]), noise=0.7) for c in present]
        memory = memory.updated(present, gram(adapters))
        labels |= cluster(present, memory.matrix(present), num_clusters=wanted, previous=labels).labels
        assert labels == {c: f"cluster-{1 + i % 2}" for i, c in enumerate(everyone) if c in labels}
    assert labels.keys() == set(everyone)


def test_memory_outvotes_one_odd_round():
    clients, usual = blocks("abc", "def", within=0.6)
    _, mixed = blocks("abc", "def", within=0.6)
    mixed[0, 1:3] = mixed[1:3, 0] = 0.0
    mixed[0, 3:] = mixed[3:, 0] = 0.5
    before = cluster(clients, usual, num_clusters=2).labels
    memory = SimilarityMemory().updated(clients, usual).updated(clients, mixed)
    assert cluster(clients, mixed, num_clusters=2, previous=before).labels["a"] == "cluster-2"
    assert cluster(clients, memory.matrix(clients), num_clusters=2, previous=before).labels == before


def test_inputs_are_untouched():
    clients, matrix = blocks("ba", "-cd")
    kept, previous = matrix.copy(), {"a": "cluster-2"}
    cluster(clients, matrix, num_clusters=0, previous=previous)
    assert np.array_equal(matrix, kept)
    assert (clients, previous) == (["b", "a", "c", "d"], {"a": "cluster-2"})


@pytest.mark.parametrize(
    ("clients", "numbers", "problem"),
    [
        (["a", "a"], {"num_clusters": 1}, "named twice; got a"),
        (["a"], {"num_clusters": 1}, "does not fit"),
        (["a", "b"], {"num_clusters": -1}, "out of bounds"),
        (["a", "b"], {"num_clusters": 0, "max_clusters": 0}, "out of bounds"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(clients, numbers, problem):
    with pytest.raises(ConfigError, match=problem):
        cluster(clients, np.eye(2), **numbers)


def test_nobody_and_no_numbers_are_refused():
    with pytest.raises(EmptyCohortError):
        cluster([], np.zeros((0, 0)), num_clusters=1)
    with pytest.raises(NonFiniteUpdateError):
        cluster(["a", "b"], np.full((2, 2), np.inf), num_clusters=1)
