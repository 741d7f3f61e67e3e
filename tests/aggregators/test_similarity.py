"""Adapters are compared as the products they stand for, within a round and over rounds."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import adapter_distance, adapter_norm
from tasks.aggregators.similarity import SimilarityMemory, change, cosine_distance, gram
from tasks.errors import AdapterShapeError, ConfigError, EmptyCohortError, NonFiniteUpdateError, RecordFormatError
from tests.aggregators.cases import client, f1, gauged, tensors
from tests.oracles import gram as oracle
from tests.strategies import adapters, cohorts

laws = settings(max_examples=50, derandomize=True)
DOUBLE = (torch.float64,)


def plain(adapter: LoraAdapter) -> dict[str, oracle.Module]:
    return {path: (p.a.double().tolist(), p.b.double().tolist(), p.scaling) for path, p in adapter.pairs.items()}


def assert_close(ours: np.ndarray, expected: list[list[float]] | np.ndarray, relative: float = 1e-10) -> None:
    expected = np.array(expected)
    roots = np.sqrt(np.diagonal(expected))
    np.testing.assert_array_less(np.abs(ours - expected), relative * np.outer(roots, roots) + 1e-300)


def test_gram_matches_the_worked_numbers():
    # dW_1 = [[3, 6], [4, 8]], dW_2 = [[5, 6], [14, 16]]: 9+36+16+64, 15+36+56+128, 25+36+196+256.
    np.testing.assert_allclose(gram(f1()), [[125.0, 235.0], [235.0, 513.0]], rtol=1e-14)
    np.testing.assert_allclose(gram(f1((2.0, 0.5))), [[500.0, 235.0], [235.0, 128.25]], rtol=1e-14)


def test_cosine_distance_matches_the_worked_numbers():
    far = 1 - 235 / math.sqrt(125 * 513)
    np.testing.assert_allclose(cosine_distance(gram(f1())), [[0.0, far], [far, 0.0]], atol=1e-14)


@laws
@given(cohorts(min_clients=1, max_clients=5), st.data())
def test_gram_and_distances_equal_the_dense_ones_when_modules_are_missing(cohort, data):
    clients = [
        LoraAdapter({path: pair for path, pair in one.pairs.items() if data.draw(st.booleans())}) for one in cohort[0]
    ]
    expected = oracle.gram([plain(one) for one in clients])
    ours = gram(clients)
    assert ours.dtype == np.float64
    assert_close(ours, expected)
    np.testing.assert_allclose(cosine_distance(ours), oracle.cosine_distance(expected), atol=1e-9)


@laws
@given(adapters(), st.sampled_from((0.25, 3.0)))
def test_gram_of_parallel_adapters_is_their_norms(adapter, factor):
    scaled = LoraAdapter({p: LoraPair(x.a, x.b * factor, x.scaling, x.form) for p, x in adapter.pairs.items()})
    ours = gram([adapter, scaled])
    norm = adapter_norm(adapter)
    assert ours[0, 1] == pytest.approx(factor * norm**2, rel=1e-5)
    assert cosine_distance(ours)[0, 1] == pytest.approx(0.0, abs=1e-6)


@laws
@given(cohorts(dtypes=DOUBLE, min_clients=2), st.integers(0, 999))
def test_gram_does_not_see_the_gauge(cohort, seed):
    clients, _ = cohort
    turned = [gauged(one, seed + 50 * i) for i, one in enumerate(clients)]
    assert_close(gram(turned), gram(clients), 1e-8)


@laws
@given(cohorts(min_clients=2, max_clients=5), st.randoms(use_true_random=False))
def test_gram_follows_the_order_of_the_adapters(cohort, random):
    clients, _ = cohort
    order = list(range(len(clients)))
    random.shuffle(order)
    ours = gram(clients)
    assert_close(gram([clients[i] for i in order]), ours[np.ix_(order, order)], 1e-12)
    assert np.array_equal(ours, ours.T)


@laws
@given(cohorts(min_clients=2, max_clients=5))
def test_distances_are_symmetric_bounded_and_zero_to_oneself(cohort):
    distances = cosine_distance(gram(cohort[0]))
    assert np.array_equal(distances, distances.T)
    assert not distances.diagonal().any()
    assert distances.min() >= 0.0
    assert distances.max() <= 2.0


@laws
@given(cohorts(dtypes=DOUBLE, min_clients=2, max_clients=2))
def test_change_is_the_difference_of_products(cohort):
    (after, before), _ = cohort
    less = LoraAdapter(dict(list(before.pairs.items())[1:]))
    for start in (before, less, LoraAdapter({})):
        assert gram([change(after, start)])[0, 0] == pytest.approx(adapter_distance(after, start) ** 2, rel=1e-7)


@laws
@given(adapters(dtypes=DOUBLE), st.integers(0, 999))
def test_change_of_nothing_has_no_direction(adapter, seed):
    assert gram([adapter, change(adapter, gauged(adapter, seed))])[1].tolist() == [0.0, 0.0]


def test_inputs_are_untouched():
    clients = [client({"m": rank, "n": 1}, rank) for rank in (1, 3)]
    before = [{name: t.clone() for name, t in tensors(one).items()} for one in clients]
    matrix = gram(clients)
    kept = matrix.copy()
    cosine_distance(matrix)
    SimilarityMemory().updated(["x", "y"], matrix)
    assert np.array_equal(matrix, kept)
    for one, then in zip(clients, before, strict=True):
        assert all(torch.equal(t, then[name]) for name, t in tensors(one).items())


def test_opposite_updates_are_two_apart_and_still_ones_at_one():
    one = client({"m": 2}, 1)
    pair = one.pairs["m"]
    opposite = LoraAdapter({"m": LoraPair(pair.a, -pair.b)})
    still = LoraAdapter({"m": LoraPair(pair.a, torch.zeros_like(pair.b))})
    matrix = gram([one, opposite, still, still])
    expected = [[0, 2, 1, 1], [2, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_allclose(cosine_distance(matrix), expected, atol=1e-12)
    assert (matrix.diagonal() > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("scale", [1e-70, 1e-45, 1e45, 1e70])
def test_distances_survive_extreme_norms(scale):
    tiny = [LoraAdapter({"m": LoraPair(p.a, scale * p.b)}) for p in (one.pairs["m"] for one in f1())]
    np.testing.assert_allclose(cosine_distance(gram(tiny)), cosine_distance(gram(f1())), rtol=1e-9)


def test_gram_names_what_it_refuses():
    with pytest.raises(EmptyCohortError):
        gram([])
    with pytest.raises(AdapterShapeError, match=r"module m: outer sizes differ.*\(4, 6\).*\(4, 5\)"):
        gram([client({"m": 1}, 1), client({"m": 2}, 2, sizes=(6, 4))])
    broken = LoraAdapter({"m": LoraPair(torch.full((1, 5), float("nan")), torch.zeros(4, 1))})
    with pytest.raises(NonFiniteUpdateError, match="adapter 1, tensor m factor a"):
        gram([client({"m": 1}, 1), broken])


def test_distances_refuse_what_is_no_gram_matrix():
    with pytest.raises(ConfigError, match="not a square matrix"):
        cosine_distance(np.ones((2, 3)))
    with pytest.raises(NonFiniteUpdateError):
        cosine_distance(np.array([[1.0, np.nan], [np.nan, 1.0]]))


def of_cosine(cosine: float, norms: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    x, y = norms
    return np.array([[x * x, cosine * x * y], [cosine * x * y, y * y]])


def test_memory_is_a_moving_average_of_cosines_whatever_the_norms():
    memory = SimilarityMemory()
    for cosine, norms in ((0.8, (1.0, 1.0)), (0.4, (100.0, 3.0)), (-0.2, (1e4, 1e4))):
        memory = memory.updated(["b", "a"], of_cosine(cosine, norms), decay=0.75)
    # 0.8; 0.75 * 0.8 + 0.25 * 0.4 = 0.7; 0.75 * 0.7 - 0.25 * 0.2 = 0.475.
    np.testing.assert_allclose(memory.matrix(["a", "b"]), of_cosine(0.475), rtol=1e-12)


def test_memory_keeps_absent_clients_where_they_were():
    three = np.array([[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]])
    memory = SimilarityMemory().updated(["a", "b", "c"], three).updated(["a", "b"], of_cosine(0.9))
    expected = [[1.0, 0.7, 0.1], [0.7, 1.0, 0.2], [0.1, 0.2, 1.0]]
    np.testing.assert_allclose(memory.matrix(["a", "b", "c"]), expected, rtol=1e-12)
    np.testing.assert_allclose(memory.matrix(["c", "a"]), of_cosine(0.1), rtol=1e-12)


def test_memory_of_a_silent_round_is_the_last_one_that_spoke():
    memory = SimilarityMemory().updated(["a", "b"], of_cosine(0.6)).updated(["a", "b"], of_cosine(0.6, (0.0, 1.0)))
    np.testing.assert_allclose(memory.matrix(["a", "b"]), of_cosine(0.6), rtol=1e-12)


def test_memory_gives_clients_never_seen_together_no_similarity():
    memory = SimilarityMemory().updated(["a", "b"], of_cosine(0.6)).updated(["a", "c"], of_cosine(0.3))
    assert memory.matrix(["b", "c", "new"]).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


@laws
@given(cohorts(min_clients=3, max_clients=4), st.floats(0.0, 0.99))
def test_memory_does_not_depend_on_order_and_survives_a_record(cohort, decay):
    matrix = gram(cohort[0])
    names = [f"c{i}" for i in range(len(matrix))]
    states = set()
    for order in itertools.permutations(range(len(matrix))):
        shuffled, first = matrix[np.ix_(order, order)], SimilarityMemory()
        for _ in range(2):
            first = first.updated([names[i] for i in order], shuffled, decay)
        states.add(json.dumps(first.to_pairs()))
    assert len(states) == 1
    pairs = json.loads(states.pop())
    assert json.dumps(SimilarityMemory.from_pairs(pairs[::-1]).to_pairs()) == json.dumps(pairs)


@pytest.mark.parametrize(
    ("clients", "decay", "problem"),
    [(["a"], 0.5, "does not fit"), (["a", "a"], 0.5, "twice"), (["a", "b"], 1.0, "1.0")],
)
def test_memory_refuses_what_it_cannot_place(clients, decay, problem):
    with pytest.raises(ConfigError, match=problem):
        SimilarityMemory().updated(clients, of_cosine(0.5), decay)


@pytest.mark.parametrize("pairs", [[("a", "b", 1.5)], [("a", "b", float("nan"))], [("a", "b", 0.1), ("b", "a", 0.2)]])
def test_memory_refuses_records_that_hold_no_cosines(pairs):
    with pytest.raises(RecordFormatError, match="similarity of"):
        SimilarityMemory.from_pairs(pairs)
