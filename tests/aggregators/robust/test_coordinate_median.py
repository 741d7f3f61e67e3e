"""Coordinate-wise median of canonical factors: oracle, the range it promises, and where it fails."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import adapter_norm, dense_product
from tasks.aggregators.robust.coordinate_median import coordinate_median, median
from tests.aggregators.robust.cases import blown_up, neighbours, scalar
from tests.oracles import robust as oracle
from tests.strategies import cohorts

Cohort = tuple[list[LoraAdapter], list[float]]


def canonical_factors(updates: list[LoraAdapter], path: str) -> list[oracle.Factors]:
    return [oracle.canonical(dense_product(u.pairs[path]).numpy(), u.ranks[path]) for u in updates]


def consensus_of(updates: list[LoraAdapter]) -> LoraAdapter:
    (update,) = coordinate_median()(updates, [1.0] * len(updates)).updates
    return update


def test_median_gives_the_worked_numbers():
    values = torch.tensor([[1.0, 5.0], [9.0, 4.0], [2.0, 7.0]])
    assert median(values).tolist() == [2.0, 5.0]
    assert median(torch.cat([values, torch.tensor([[4.0, 0.0]])])).tolist() == [3.0, 4.5]


def test_clients_that_agree_up_to_sign_of_factors_keep_their_product():
    # Factors (1, 1), (1, 1) and (-1, -1): the raw mean's product is 1/9, though every product is 1.
    one = LoraPair(torch.ones(1, 1), torch.ones(1, 1))
    turned = LoraPair(-torch.ones(1, 1), -torch.ones(1, 1))
    result = consensus_of([LoraAdapter({"m": p}) for p in (one, one, turned)])
    assert float(dense_product(result.pairs["m"])) == pytest.approx(1.0)


@settings(derandomize=True, max_examples=15)
@given(cohort=cohorts(min_clients=1, max_clients=6, dtypes=(torch.float64,)))
def test_coordinate_median_agrees_with_the_oracle(cohort: Cohort):
    updates, _ = cohort
    result = consensus_of(updates)
    for path, pair in result.pairs.items():
        a, b = oracle.over_owners(canonical_factors(updates, path), oracle.median)
        np.testing.assert_allclose(pair.a.numpy(), a, atol=1e-8)
        np.testing.assert_allclose(pair.b.numpy(), b, atol=1e-8)
    for name, tensor in result.dense.items():
        columns = zip(*(u.dense[name].flatten().tolist() for u in updates), strict=True)
        assert tensor.flatten().tolist() == pytest.approx([oracle.median(c) for c in columns])


@pytest.mark.parametrize("size", [1e6, -1e6])
@pytest.mark.parametrize("num_attackers", [1, 2])
def test_every_coordinate_lies_between_two_honest_ones(size: float, num_attackers: int):
    updates = neighbours(5)
    attacked = [*(blown_up(u, size) for u in updates[:num_attackers]), *updates[num_attackers:]]
    result = consensus_of(attacked)
    honest = canonical_factors(updates[num_attackers:], "m")
    pairs = zip((result.pairs["m"].a, result.pairs["m"].b), zip(*honest, strict=True), strict=True)
    for ours, theirs in pairs:
        assert (ours.numpy() >= np.min(theirs, axis=0) - 1e-5).all()
        assert (ours.numpy() <= np.max(theirs, axis=0) + 1e-5).all()


def test_slots_with_one_or_two_owners_are_noted():
    low, high = neighbours(3, rank=1), neighbours(2, rank=3)
    notes = coordinate_median()([*low, *high], [1.0] * 5).notes
    why = "2 of its 4 slots and dense tensors have fewer than 3 owners: the median guards nothing there"
    assert notes == {3: why, 4: why}


def test_weights_do_not_count():
    updates = neighbours(4)
    screens = [coordinate_median()(updates, w) for w in ([1.0] * 4, [1.0, 1000.0, 1.0, 7.0])]
    assert torch.equal(*(s.updates[0].pairs["m"].a for s in screens))
    assert [s.weights for s in screens] == [(1.0,), (1.0,)]


def test_counters_take_the_lower_median():
    updates = [LoraAdapter(scalar(1.0).pairs, {"steps": torch.tensor(count)}) for count in (3, 900, 2, 4)]
    assert torch.equal(consensus_of(updates).dense["steps"], torch.tensor(3))


def test_modules_and_tensors_that_some_clients_lack_come_from_the_rest():
    whole = [scalar(float(k), head=float(k)) for k in (1, 2, 3)]
    result = consensus_of([*whole, LoraAdapter({})])
    assert float(dense_product(result.pairs["m"])) == pytest.approx(2.0)
    assert float(result.dense["head"]) == 2.0


def test_narrow_dtypes_are_combined_wide():
    updates = [LoraAdapter({"m": LoraPair(torch.full((1, 4), v).bfloat16(), torch.ones(4, 1))}) for v in (1, 2, 3)]
    pair = consensus_of(updates).pairs["m"]
    assert pair.a.dtype == torch.float32
    torch.testing.assert_close(pair.b @ pair.a, torch.full((4, 4), 2.0))


def test_slots_whose_singular_values_cross_do_not_correspond():
    # The stated limit: the first slot of one client is the second of the other, and the consensus falls short of both.
    crossed = [torch.tensor(d) for d in ((2.0, 1.0), (1.0, 2.0))]
    updates = [LoraAdapter({"m": LoraPair(torch.eye(2), torch.diag(d))}) for d in crossed]
    shortest = min(map(adapter_norm, updates))
    assert adapter_norm(consensus_of(updates)) < 0.8 * shortest
