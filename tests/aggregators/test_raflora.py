"""raFLoRA against worked numbers, and its tie to FlexLoRA; its general laws are in `test_laws`."""

import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import dense_product, spectrum
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.shares import living_prefix
from tasks.aggregators.table import AGGREGATORS
from tests.aggregators.cases import (
    F1_A,
    F1_B,
    F1_WEIGHTS,
    allowance,
    by_oracle,
    client,
    distance,
    f1,
    f64,
    gap,
    mixed_cohort,
    products,
)
from tests.oracles.raflora import raflora as oracle
from tests.strategies import cohorts

ROW = AGGREGATORS["raflora"]


def test_raflora_gives_the_worked_numbers():
    pair = aggregate("raflora", f1(), F1_WEIGHTS).pairs["m"]
    torch.testing.assert_close(dense_product(pair), f64([[4.5, 6], [15, 18]]), rtol=0, atol=1e-12)
    assert spectrum(pair).tolist() == pytest.approx([24.599109, 0.365867], abs=5e-7)


def test_oracle_gives_the_worked_numbers():
    clients = [(a, b, 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    torch.testing.assert_close(f64(oracle(clients, F1_WEIGHTS)), f64([[4.5, 6], [15, 18]]))


@settings(derandomize=True, max_examples=15)
@given(cohort=cohorts(min_clients=2))
def test_exponent_nought_is_flexlora(cohort: tuple[list[LoraAdapter], list[float]]):
    result = aggregate("raflora", *cohort, options={"coverage_exponent": 0.0})
    assert gap(ROW, result, aggregate("flexlora", *cohort)) <= allowance(ROW, *cohort[0])


@settings(derandomize=True, max_examples=15)
@given(cohort=cohorts(min_clients=2, has_equal_ranks=True))
def test_equal_ranks_are_flexlora(cohort: tuple[list[LoraAdapter], list[float]]):
    result = aggregate("raflora", *cohort)
    assert gap(ROW, result, aggregate("flexlora", *cohort)) <= allowance(ROW, *cohort[0])


def test_exponent_between_dilutes_by_the_root_of_coverage():
    updates, weights = mixed_cohort(4)
    result = aggregate("raflora", updates, weights, options={"coverage_exponent": 0.5})
    for path, product in products(result).dense.items():
        if path.endswith(".product"):
            clients = [
                (p.a.tolist(), p.b.tolist(), p.scaling) for u in updates for p in [u.pairs[path.rpartition(".")[0]]]
            ]
            torch.testing.assert_close(product, f64(oracle(clients, weights, 0.5)))


@pytest.mark.parametrize("name", ["raflora", "raflora_canonical"])
def test_slots_nobody_owns_this_round_keep_their_product(name: str):
    old = aggregate("flexlora", [client({"m": 4}, 7, dtype=torch.float64, sizes=(9, 8))], [1.0])
    small = client({"m": 2}, 8, dtype=torch.float64, sizes=(9, 8))
    result = aggregate(name, [small], [5.0], previous=old)
    kept = old.pairs["m"].b[:, 2:] @ old.pairs["m"].a[2:]
    torch.testing.assert_close(dense_product(result.pairs["m"]), dense_product(small.pairs["m"]) + kept)
    assert result.ranks == {"m": 4}


def test_ten_noop_rounds_leave_the_spectrum_alone():
    first = now = aggregate("flexlora", [client({"m": 9}, 3, dtype=torch.float64, sizes=(12, 12))], [1.0])
    for _ in range(10):
        returned = [living_prefix(now, {"m": rank}) for rank in (2, 5, 9)]
        now = aggregate("raflora", returned, [0.2, 0.3, 0.5], previous=now)
    assert distance(products(now), products(first)) <= 1e-12


def test_canonical_factors_do_not_see_the_order_of_slots():
    updates, weights = mixed_cohort(5)
    turned = [
        LoraAdapter({p: LoraPair(v.a.flip(0), v.b.flip(1), v.scaling, v.form) for p, v in u.pairs.items()}, u.dense)
        for u in updates
    ]
    moved = [
        gap(ROW, aggregate(n, updates, weights), aggregate(n, turned, weights))
        for n in ("raflora_canonical", "raflora")
    ]
    assert moved[0] <= allowance(ROW, *updates)
    assert moved[1] > 0.1


def test_canonical_equals_raflora_where_factors_are_canonical():
    updates, weights = mixed_cohort(6)
    ordered = [aggregate("flexlora", [u], [1.0]) for u in updates]
    result = aggregate("raflora", ordered, weights)
    assert gap(ROW, result, aggregate("raflora_canonical", ordered, weights)) <= allowance(ROW, *updates)
    assert gap(ROW, result, by_oracle("raflora_canonical", updates, weights)) <= allowance(ROW, *updates)


def test_energy_threshold_cuts_the_mean():
    updates, weights = mixed_cohort(7)
    result = aggregate("raflora", updates, weights, options={"energy": 0.5})
    assert all(result.ranks[path] < rank for path, rank in {"layers.0": 4, "layers.1": 3}.items())
