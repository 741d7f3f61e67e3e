"""The measures of a round against dense numpy arithmetic, worked numbers, and the laws they owe their readers."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.errors import (
    AdapterShapeError,
    EmptyCohortError,
    FoldOrderError,
    InvalidWeightError,
    NonFiniteUpdateError,
)
from tasks.evaluation.diagnostics import SPECTRUM_LENGTH, Diagnostics, Observed, diagnose
from tests.strategies import cohorts, normal

DOUBLE = (torch.float64,)
laws = settings(max_examples=30, derandomize=True)


def pair(a, b, scaling=1.0) -> LoraPair:
    return LoraPair(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), scaling)


def from_dense(product) -> LoraAdapter:
    """An adapter whose one module stands for this matrix."""
    dense = torch.tensor(product, dtype=torch.float64)
    return LoraAdapter({"m": LoraPair(dense, torch.eye(len(product), dtype=torch.float64))})


def observed(clients, weights) -> Observed:
    found = Observed()
    for client, weight in zip(clients, weights, strict=True):
        found.add(client, weight)
    return found


def measure(clients, weights, result, levels=None) -> Diagnostics:
    return diagnose(observed(clients, weights), result, levels or [client.ranks for client in clients])


def dense(p: LoraPair) -> np.ndarray:
    return p.scaling * (p.b.double().numpy() @ p.a.double().numpy())


def mean_product(clients, weights, path) -> np.ndarray:
    """sum w_k dW_k / sum w_k over those who trained the module, as the notes define dW*."""
    own = [
        (client.pairs[path], weight) for client, weight in zip(clients, weights, strict=True) if path in client.pairs
    ]
    total = sum(weight for _, weight in own)
    return np.sum([weight / total * dense(p) for p, weight in own], axis=0)


def error_of(clients, weights, result) -> float:
    error = measure(clients, weights, result).product_error
    assert error is not None
    return error


def close(x: Diagnostics, y: Diagnostics, *, has_spectra: bool = True) -> None:
    assert x.product_error == pytest.approx(y.product_error, rel=1e-8, abs=1e-12)
    for name in ("coverage", "slot_energy", "collapse_index", "effective_rank", "partition_energy"):
        assert getattr(x, name) == pytest.approx(getattr(y, name), rel=1e-8, abs=1e-12)
    assert {p: pytest.approx(c) for p, c in x.coverage_by_module.items()} == y.coverage_by_module
    if has_spectra:
        assert {p: pytest.approx(s, rel=1e-8, abs=1e-9 * s[0]) for p, s in x.spectra.items()} == y.spectra


# Fixture F1 of the method notes: two clients of ranks 1 and 2, weights 1/4 and 3/4.
F1 = [
    LoraAdapter({"m": pair([[1, 2]], [[3], [4]])}),
    LoraAdapter({"m": pair([[5, 6], [7, 8]], [[1, 0], [0, 2]])}),
]
TARGET = np.array([[4.5, 6], [11.5, 14]])
PRODUCTS = {
    "rbla": [[6, 7.5], [18, 21]],
    "zero_pad": [[6, 7.5], [11.875, 14]],
    "raflora": [[4.5, 6], [15, 18]],
    "flexlora at rank 1": [[4.719669, 5.821921], [11.409129, 14.073667]],
}


@pytest.mark.parametrize("method", PRODUCTS)
def test_product_error_is_the_worked_one(method):
    error = error_of(F1, [1, 3], from_dense(PRODUCTS[method]))
    squares = [(x - y) ** 2 for x, y in zip(TARGET.ravel(), np.ravel(PRODUCTS[method]), strict=True)]
    assert error == pytest.approx(math.sqrt(sum(squares)) / math.sqrt(4.5**2 + 6**2 + 11.5**2 + 14**2))
    if method == "flexlora at rank 1":
        # Eckart and Young: what is missing is the second singular value.
        assert error == pytest.approx(0.306024 / math.hypot(19.606283, 0.306024), rel=1e-5)


def test_scalings_belong_to_the_product():
    clients = [replace(F1[i], pairs={"m": replace(F1[i].pairs["m"], scaling=s)}) for i, s in enumerate((2.0, 0.5))]
    assert error_of(clients, [1, 3], from_dense([[3.375, 5.25], [7.25, 10]])) < 1e-15
    halved = LoraAdapter({"m": replace(from_dense(2 * TARGET).pairs["m"], scaling=0.5)})
    assert error_of(F1, [1, 3], halved) < 1e-15


def test_an_exact_stack_has_no_error_and_a_tiny_one_is_not_lost():
    a, b = torch.cat([c.pairs["m"].a for c in F1]), torch.cat([F1[0].pairs["m"].b, 3 * F1[1].pairs["m"].b], dim=1)
    stack = LoraAdapter({"m": LoraPair(a, b / 4)})
    assert error_of(F1, [1, 3], stack) < 1e-15
    # A root of differences of squares could not see this.
    off = from_dense(TARGET * (1 + 1e-11))
    assert error_of(F1, [1, 3], off) == pytest.approx(1e-11, rel=1e-3)


@laws
@given(cohorts(min_clients=2), st.integers(0, 3))
def test_product_error_equals_the_dense_one(cohort, other):
    clients, weights = cohort
    result = clients[other % len(clients)]
    errors = [mean_product(clients, weights, path) - dense(p) for path, p in result.pairs.items()]
    targets = [mean_product(clients, weights, path) for path in result.pairs]
    expected = math.hypot(*map(np.linalg.norm, errors)) / math.hypot(*map(np.linalg.norm, targets))
    assert error_of(clients, weights, result) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_each_module_has_its_own_contributors():
    one, both = LoraAdapter({"m": F1[0].pairs["m"]}), LoraAdapter({"m": F1[1].pairs["m"], "n": F1[0].pairs["m"]})
    n, m = np.array([[3, 6], [4, 8]]), TARGET
    found = measure([one, both], [1, 3], LoraAdapter({"m": from_dense(m).pairs["m"], "n": both.pairs["n"]}))
    assert found.product_error == pytest.approx(0, abs=1e-15)
    assert found.coverage_by_module == {"m": (1.0, 0.75), "n": (1.0,)}
    # Not in the result: all of it is missing. In no update: nothing to compare with.
    lost = LoraAdapter({"m": from_dense(m).pairs["m"], "old": both.pairs["n"]})
    expected = np.linalg.norm(n) / math.hypot(np.linalg.norm(n), np.linalg.norm(m))
    assert error_of([one, both], [1, 3], lost) == pytest.approx(expected)


def test_zero_adapters_have_no_ratio_but_zero_and_none():
    nothing = from_dense(np.zeros((2, 2)))
    silent = measure([nothing], [1], nothing)
    assert silent.product_error == 0
    assert (silent.collapse_index, silent.effective_rank, silent.slot_energy) == (0, 0, (0, 0))
    assert silent.partition_energy == {"1-2": 0}
    undefined = measure([nothing], [1], from_dense(TARGET))
    assert undefined.product_error is None
    assert "product_error" not in undefined.to_metrics()


def test_coverage_is_the_worked_one_and_reaches_to_the_largest_rank_in_use():
    levels = [{"m": 1}, {"m": 2}, {"m": 4}]
    assert measure(F1, [1, 3], from_dense(TARGET), levels).coverage == (1.0, 0.75, 0.0, 0.0)
    assert measure(F1, [1, 3], from_dense(TARGET), [{"m": 1}]).coverage == (1.0, 0.75)


def test_coverage_is_the_mean_over_modules_that_have_the_slot():
    clients = [
        LoraAdapter({path: LoraPair(normal((rank, 5), 1), normal((4, rank), 2)) for path, rank in ranks.items()})
        for ranks in ({"a": 1, "b": 2}, {"a": 3, "b": 1})
    ]
    found = measure(clients, [1, 4], clients[0])
    assert found.coverage_by_module == {"a": (1.0, 0.8, 0.8), "b": (1.0, 0.2)}
    assert found.coverage == pytest.approx((1.0, 0.5, 0.8))
    assert found.to_metrics()["coverage_slot_min"] == pytest.approx(0.5)
    assert found.to_metrics()["coverage_slot_mean"] == pytest.approx((1.0 + 0.5 + 0.8) / 3)


@laws
@given(cohorts(has_equal_ranks=True))
def test_coverage_of_equal_ranks_is_one(cohort):
    clients, weights = cohort
    found = measure(clients, weights, clients[0])
    assert set(found.coverage) == {1.0}
    assert {path: len(row) for path, row in found.coverage_by_module.items()} == clients[0].ranks


@laws
@given(cohorts(dtypes=DOUBLE, min_clients=2), st.integers(0, 2**20))
def test_only_products_count(cohort, seed):
    clients, weights = cohort

    def gauged(p: LoraPair) -> LoraPair:
        g = normal((p.rank, p.rank), seed, dtype=torch.float64) + 4 * torch.eye(p.rank, dtype=torch.float64)
        return LoraPair(g @ p.a, p.scaling / 4 * p.b @ torch.linalg.inv(g), 4.0, p.form)

    others = [LoraAdapter({path: gauged(p) for path, p in c.pairs.items()}) for c in clients]
    close(measure(clients, weights, clients[0]), measure(others, weights, others[0]))


@laws
@given(cohorts(dtypes=DOUBLE, min_clients=2), st.sampled_from([1e-6, 0.3, 7.0, 1e5]))
def test_scale_of_updates_and_of_weights_is_irrelevant(cohort, factor):
    clients, weights = cohort
    scaled = [
        LoraAdapter({path: replace(p, scaling=p.scaling * factor) for path, p in c.pairs.items()}) for c in clients
    ]
    found = measure(clients, weights, clients[0])
    close(found, measure(scaled, weights, scaled[0]), has_spectra=False)
    close(found, measure(clients, [factor * weight for weight in weights], clients[0]))


@laws
@given(cohorts(min_clients=2), st.randoms(use_true_random=False))
def test_order_of_arrival_changes_no_bit(cohort, random):
    clients, weights = cohort
    arrivals = list(enumerate(zip(clients, weights, strict=True)))
    random.shuffle(arrivals)
    shuffled = Observed()
    for position, (client, weight) in arrivals:
        shuffled.add(client, weight, position=position)
    levels = [client.ranks for client in clients]
    assert diagnose(shuffled, clients[0], levels) == measure(clients, weights, clients[0])


@laws
@given(cohorts())
def test_inputs_are_untouched_and_observations_serve_twice(cohort):
    clients, weights = cohort
    before = [(p.a.clone(), p.b.clone()) for c in clients for p in c.pairs.values()]
    seen, levels = observed(clients, weights), [client.ranks for client in clients]
    assert diagnose(seen, clients[0], levels) == diagnose(seen, clients[0], levels)
    after = [(p.a, p.b) for c in clients for p in c.pairs.values()]
    assert all(torch.equal(x, y) for old, new in zip(before, after, strict=True) for x, y in zip(old, new, strict=True))


def test_what_a_client_sent_is_copied():
    update = from_dense(TARGET)
    seen = observed([update], [1])
    update.pairs["m"].a.zero_()
    assert diagnose(seen, from_dense(TARGET), [{"m": 2}]).product_error == pytest.approx(0, abs=1e-15)


def test_metrics_have_flat_names_and_json_holds_everything():
    result = from_dense(np.diag([3.0, 2.0, 1.0, 1.0]))
    wide = [LoraAdapter({"m": LoraPair(normal((r, 4), r), normal((4, r), 9))}) for r in (1, 3)]
    found = measure(wide, [1, 1], result)
    metrics = found.to_metrics()
    assert all(re.fullmatch(r"[a-z0-9_]+", name) and isinstance(value, float) for name, value in metrics.items())
    energies = {name: value for name, value in metrics.items() if name.startswith("energy")}
    assert energies == pytest.approx(
        {"energy_rank_001_001": 9 / 15, "energy_rank_002_003": 5 / 15, "energy_rank_004_up": 1 / 15}
    )
    assert metrics["collapse_index"] == pytest.approx(6 / 15)
    loaded = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert loaded["spectra"] == {"m": pytest.approx([3, 2, 1, 1])}
    assert loaded["partition_energy"] == dict(found.partition_energy)
    assert set(loaded) == set(Diagnostics.__dataclass_fields__)


def test_long_spectra_are_cut_and_still_counted():
    size = SPECTRUM_LENGTH + 6
    found = measure([from_dense(np.eye(size))], [1], from_dense(np.eye(size)))
    assert found.spectra["m"] == pytest.approx([1.0] * SPECTRUM_LENGTH)
    assert len(found.slot_energy) == size
    assert found.effective_rank == pytest.approx(size)


def test_an_adapter_of_dense_tensors_alone_has_nothing_to_measure():
    head = LoraAdapter({}, {"head": normal((3,), 0)})
    found = measure([head], [1], head, [{}])
    assert found.to_metrics() == {"product_error": 0, "collapse_index": 0, "effective_rank": 0}


def test_what_cannot_be_measured_is_refused():
    levels, nan = [{"m": 2}], from_dense([[1.0, math.nan], [0.0, 1.0]])
    with pytest.raises(EmptyCohortError, match="no update"):
        diagnose(Observed(), F1[0], levels)
    with pytest.raises(EmptyCohortError, match="rank levels"):
        diagnose(observed(F1, [1, 3]), F1[0], [])
    with pytest.raises(NonFiniteUpdateError, match="update 0"):
        observed([nan], [1])
    with pytest.raises(NonFiniteUpdateError, match="aggregate"):
        diagnose(observed(F1, [1, 3]), nan, levels)
    with pytest.raises(InvalidWeightError, match="update 1"):
        observed(F1, [1, 0])
    with pytest.raises(AdapterShapeError, match="rank 0"):
        observed([LoraAdapter({"m": LoraPair(torch.zeros(0, 2), torch.zeros(2, 0))})], [1])
    with pytest.raises(FoldOrderError, match="update 0"):
        observed(F1, [1, 3]).add(F1[0], 1, position=0)


@pytest.mark.parametrize("place", ["client", "result"])
def test_modules_of_other_sizes_are_refused(place):
    other = from_dense(np.eye(3))
    clients, result = ([*F1, other], F1[0]) if place == "client" else (F1, other)
    with pytest.raises(AdapterShapeError, match="module m"):
        measure(clients, [1] * len(clients), result)
