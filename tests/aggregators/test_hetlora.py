"""HetLoRA: its norm weights, what becomes of clients that learnt nothing, and whom it does not listen to."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.adapters.products import pair_norm
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import AdapterShapeError, InvalidWeightError, NonFiniteUpdateError
from tests.aggregators.cases import F1_A, F1_B, F1_WEIGHTS, by_oracle, client, distance, f1, same_bits, tolerance
from tests.oracles.hetlora import norm_weights
from tests.strategies import cohorts

F1_NORM_WEIGHTS = (0.330487, 0.669513)
PER_MODULE = {"per_module": 1}


def without_product(update: LoraAdapter) -> LoraAdapter:
    """Return an update whose `a` is alive and whose `b` is zero, as it is before anything is learnt."""
    return LoraAdapter({p: replace(pair, b=torch.zeros_like(pair.b)) for p, pair in update.pairs.items()}, update.dense)


def module(update: LoraAdapter, path: str) -> LoraAdapter:
    return LoraAdapter({path: update.pairs[path]})


def test_oracle_gives_the_worked_weights():
    clients = [(a, b, 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    assert norm_weights([clients]) == pytest.approx(F1_NORM_WEIGHTS, abs=5e-7)
    assert [pair_norm(u.pairs["m"]) for u in f1()] == pytest.approx([11.180340, 22.649503], abs=5e-7)


def test_hetlora_gives_the_worked_numbers():
    first, second = F1_NORM_WEIGHTS
    pair = aggregate("hetlora", f1(), F1_WEIGHTS).pairs["m"]
    expected_a = [[first + 5 * second, 2 * first + 6 * second], [7 * second, 8 * second]]
    expected_b = [[3 * first + second, 0], [4 * first, 2 * second]]
    torch.testing.assert_close(pair.a, torch.tensor(expected_a).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(pair.b, torch.tensor(expected_b).double(), rtol=0, atol=1e-5)


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts(min_clients=2))
def test_norms_may_be_taken_of_each_module_alone(cohort: tuple[list[LoraAdapter], list[float]]):
    updates, weights = cohort
    result = aggregate("hetlora", updates, weights, options=PER_MODULE)
    for path in updates[0].pairs:
        expected = by_oracle("hetlora", [module(u, path) for u in updates], weights)
        assert distance(module(result, path), expected) <= max(map(tolerance, updates))


def test_a_large_module_counts_in_the_others_unless_norms_are_per_module():
    updates = [client({"m": 2, "n": 2}, seed, dtype=torch.float64) for seed in (1, 2)]
    louder = replace(updates[0].pairs["n"], scaling=1000.0)
    loud = LoraAdapter({"m": updates[0].pairs["m"], "n": louder})
    together, alone = (
        aggregate("hetlora", [loud, updates[1]], [1.0, 1.0], options=options).pairs["m"] for options in ({}, PER_MODULE)
    )
    torch.testing.assert_close(together.a, updates[0].pairs["m"].a, rtol=0, atol=0.01)
    same = aggregate("hetlora", [module(u, "m") for u in updates], [1.0, 1.0]).pairs["m"]
    assert torch.equal(alone.a, same.a)


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts(min_clients=2))
def test_given_weights_move_dense_tensors_only(cohort: tuple[list[LoraAdapter], list[float]]):
    updates, weights = cohort
    result, equal = aggregate("hetlora", updates, weights), aggregate("hetlora", updates, [1.0] * len(updates))
    assert same_bits(LoraAdapter(result.pairs), LoraAdapter(equal.pairs))
    for name, mean in aggregate("rbla", updates, weights).dense.items():
        assert torch.equal(result.dense[name], mean)


def test_splitting_a_client_in_two_doubles_its_say():
    updates = [client({"m": 2}, seed, dtype=torch.float64) for seed in (1, 2)]
    split = aggregate("hetlora", [*updates, updates[1]], [2.0, 1.0, 1.0]).pairs["m"]
    norms = [pair_norm(u.pairs["m"]) for u in updates]
    doubled = aggregate("zero_pad", updates, [norms[0], 2 * norms[1]]).pairs["m"]
    torch.testing.assert_close(split.a, doubled.a)
    assert not torch.allclose(split.a, aggregate("hetlora", updates, [2.0, 2.0]).pairs["m"].a)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_client_without_a_product_has_no_say_but_owns_its_slots(order: tuple[int, ...], dtype: torch.dtype):
    learnt = [client({"m": rank}, rank, dtype=dtype) for rank in (1, 2)]
    updates = [*learnt, without_product(client({"m": 4}, 9, dtype=dtype))]
    result = aggregate("hetlora", [updates[k] for k in order], [1.0, 1.0, 1.0]).pairs["m"]
    expected = aggregate("hetlora", [updates[k] for k in order if k < 2], [1.0, 1.0]).pairs["m"]
    assert result.rank == 4
    assert torch.equal(result.a[:2], expected.a)
    assert torch.equal(result.b[:, :2], expected.b)
    torch.testing.assert_close(result.a[2:], torch.zeros(2, 5, dtype=dtype), rtol=0, atol=1e-300)


@pytest.mark.parametrize("options", [{}, PER_MODULE])
def test_clients_count_alike_where_nobody_has_a_product(options: dict[str, float]):
    updates = [without_product(client({"m": rank}, rank, dtype=torch.float64)) for rank in (3, 1, 2)]
    result = aggregate("hetlora", updates, [1.0, 5.0, 9.0], options=options)
    assert same_bits(result, aggregate("zero_pad", updates, [1.0, 1.0, 1.0]))


def test_noop_round_shrinks_a_slots_product_by_norm_coverage_squared():
    old = client({"m": 2}, 5, dtype=torch.float64)
    returned = [prefix(old, {"m": rank}) for rank in (1, 2)]
    small, large = (pair_norm(u.pairs["m"]) for u in returned)
    new, before = aggregate("hetlora", returned, [1.0, 1.0], previous=old).pairs["m"], old.pairs["m"]
    coverage = large / (small + large)
    torch.testing.assert_close(new.a[0], before.a[0])
    torch.testing.assert_close(
        torch.outer(new.b[:, 1], new.a[1]), coverage**2 * torch.outer(before.b[:, 1], before.a[1])
    )


def test_slots_nobody_owns_become_zero_and_untrained_layers_stay():
    old = client({"m": 3, "other": 2}, 5)
    result = aggregate("hetlora", [client({"m": 1}, 9)], [1.0], previous=old)
    assert result.ranks == {"m": 3, "other": 2}
    assert not result.pairs["m"].a[1:].any()
    assert torch.equal(result.pairs["other"].a, old.pairs["other"].a)


def test_nan_names_its_update_though_the_norm_would_hide_it():
    bad = client({"m": 2}, 1)
    bad.pairs["m"].a[0, 0] = float("nan")
    with pytest.raises(NonFiniteUpdateError, match="update 1, tensor m factor a"):
        aggregate("hetlora", [client({"m": 2}, 2), bad], [1.0, 1.0])


def test_norm_that_overflows_is_refused():
    large = torch.tensor([[1e200]], dtype=torch.float64)
    huge = LoraAdapter({"m": LoraPair(large.expand(1, 5), large.expand(4, 1))})
    with pytest.raises(InvalidWeightError, match=r"update 1, module m, norm of its product: .*got inf"):
        aggregate("hetlora", [client({"m": 2}, 2), huge], [1.0, 1.0])


def test_refused_update_leaves_the_fold_as_it_was():
    updates = [client({"m": rank}, rank, dense={"head": torch.ones(2)}) for rank in (1, 2)]
    fold = AGGREGATORS["hetlora"].fold()
    fold.add(0, updates[0], 1.0)
    wrong_layer = client({"a.first": 2, "m": 2}, 9, sizes=(6, 4))
    with pytest.raises(AdapterShapeError, match="update 1, module m"):
        fold.add(1, wrong_layer, 1.0)
    with pytest.raises(AdapterShapeError, match="update 1, tensor head"):
        fold.add(1, client({"a.first": 2}, 9, dense={"head": torch.ones(3)}), 1.0)
    fold.add(1, updates[1], 1.0)
    assert same_bits(fold.finish(None), aggregate("hetlora", updates, [1.0, 1.0]))
