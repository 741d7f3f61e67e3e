"""Zero-padding: worked numbers, its tie to RBLA, and the decay it is known for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, prefix
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import FoldOrderError
from tests.aggregators.cases import F1_A, F1_B, F1_WEIGHTS, client, f1, same_bits
from tests.oracles.zero_pad import zero_pad as oracle
from tests.strategies import cohorts


def f64(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def with_exponent(exponent: float, updates: list[LoraAdapter], weights: list[float]) -> LoraAdapter:
    return aggregate("zero_pad", updates, weights, options={"coverage_exponent": exponent})


def test_zero_pad_gives_the_worked_numbers():
    pair = aggregate("zero_pad", f1(), F1_WEIGHTS).pairs["m"]
    assert torch.equal(pair.a, f64([[4, 5], [5.25, 6]]))
    assert torch.equal(pair.b, f64([[1.5, 0], [1, 1.5]]))
    assert torch.equal(pair.b @ pair.a, f64([[6, 7.5], [11.875, 14]]))


def test_zero_pad_gives_the_worked_numbers_under_unequal_scales():
    pair = aggregate("zero_pad", f1(scales=(2.0, 0.5)), F1_WEIGHTS).pairs["m"]
    assert torch.equal(pair.b, f64([[1.875, 0], [2, 0.75]]))


def test_oracle_gives_the_worked_numbers():
    clients = [(a, b, 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    assert oracle(clients, F1_WEIGHTS) == ([[4.0, 5.0], [5.25, 6.0]], [[1.5, 0.0], [1.0, 1.5]])


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts(min_clients=2))
def test_zero_pad_is_rbla_times_coverage(cohort: tuple[list[LoraAdapter], list[float]]):
    updates, weights = cohort
    padded, owned = aggregate("zero_pad", updates, weights), aggregate("rbla", updates, weights)
    for path, pair in owned.pairs.items():
        coverage = torch.tensor(
            [
                sum(w for u, w in zip(updates, weights, strict=True) if u.ranks[path] > slot) / sum(weights)
                for slot in range(pair.rank)
            ],
            dtype=pair.a.dtype,
        )
        torch.testing.assert_close(padded.pairs[path].a, pair.a * coverage[:, None])
        torch.testing.assert_close(padded.pairs[path].b, pair.b * coverage)


@pytest.mark.parametrize(("exponent", "name"), [(0.0, "zero_pad"), (1.0, "rbla")])
@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts(min_clients=2))
def test_coverage_exponent_ends_are_zero_pad_and_rbla(
    exponent: float, name: str, cohort: tuple[list[LoraAdapter], list[float]]
):
    assert same_bits(with_exponent(exponent, *cohort), aggregate(name, *cohort))


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts(min_clients=2), exponent=st.floats(0.1, 0.9))
def test_coverage_exponent_between_lies_between(cohort: tuple[list[LoraAdapter], list[float]], exponent: float):
    diluted, between, owned = (with_exponent(e, *cohort) for e in (0.0, exponent, 1.0))
    for path, pair in between.pairs.items():
        ends = diluted.pairs[path].a.abs(), owned.pairs[path].a.abs()
        assert bool((ends[0] <= pair.a.abs()).all())
        assert bool((pair.a.abs() <= ends[1]).all())


def test_coverage_exponent_of_a_half_gives_the_worked_numbers():
    # F1 has coverage 1 and 3/4: slot 1 is the owner's times the root of 3/4.
    pair = with_exponent(0.5, f1(), F1_WEIGHTS).pairs["m"]
    torch.testing.assert_close(pair.a, f64([[4, 5], [7 * 0.75**0.5, 8 * 0.75**0.5]]))
    torch.testing.assert_close(pair.b, f64([[1.5, 0], [1, 2 * 0.75**0.5]]))


def test_folds_of_different_exponents_do_not_merge():
    left, right = (AGGREGATORS["zero_pad"].fold({"coverage_exponent": e}) for e in (0.0, 0.5))
    left.add(0, f1()[0], 1.0)
    right.add(64, f1()[1], 1.0)
    with pytest.raises(FoldOrderError, match="another method"):
        left.merge(right)


def test_noop_round_shrinks_a_slots_product_by_coverage_squared():
    old = client({"m": 3}, 5, dtype=torch.float64)
    returned = [prefix(old, {"m": rank}) for rank in (1, 2, 3)]
    new = aggregate("zero_pad", returned, [2.0, 3.0, 5.0], previous=old).pairs["m"]
    for slot, coverage in enumerate((1.0, 0.8, 0.5)):
        before = torch.outer(old.pairs["m"].b[:, slot], old.pairs["m"].a[slot])
        after = torch.outer(new.b[:, slot], new.a[slot])
        torch.testing.assert_close(after, coverage**2 * before)


def test_slots_nobody_owns_become_zero_and_untrained_layers_stay():
    old = client({"m": 3, "other": 2}, 5)
    result = aggregate("zero_pad", [client({"m": 1}, 9)], [1.0], previous=old)
    assert result.ranks == {"m": 3, "other": 2}
    assert not result.pairs["m"].a[1:].any()
    assert not result.pairs["m"].b[:, 1:].any()
    assert torch.equal(result.pairs["other"].a, old.pairs["other"].a)


@pytest.mark.parametrize("dropped", [0, 1])
def test_coverage_counts_only_clients_that_trained_the_module(dropped: int):
    updates = [client({"m": 2, "n": 1 + k}, 40 + k, dtype=torch.float64) for k in range(3)]
    with_gap = list(updates)
    with_gap[dropped] = LoraAdapter({"m": updates[dropped].pairs["m"]})
    rest = [u for k, u in enumerate(updates) if k != dropped]
    weights = [3.0, 2.0, 1.0]
    result = aggregate("zero_pad", with_gap, weights)
    expected = aggregate("zero_pad", rest, [w for k, w in enumerate(weights) if k != dropped])
    assert torch.equal(result.pairs["n"].a, expected.pairs["n"].a)
