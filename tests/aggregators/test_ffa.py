"""FFA: the mean of `b` on one frozen `a` is the mean of the products, and another `a` is refused."""

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings

from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.adapters.products import dense_product
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.ffa import ffa as start
from tasks.errors import AdapterShapeError, FrozenFactorError, NonFiniteUpdateError
from tests.aggregators.cases import F1_B, F1_WEIGHTS, by_oracle, client, distance, same_bits, tolerance
from tests.oracles.ffa import ffa
from tests.strategies import cohorts

A = [[5.0, 6.0], [7.0, 8.0]]
WORKED_B = [[1.5, 0.0], [1.0, 1.5]]


def frozen(updates: list[LoraAdapter]) -> list[LoraAdapter]:
    """Give all clients the first rows of one `a` per module: the one of the largest rank."""
    paths = {path for update in updates for path in update.pairs}
    shared = {p: max((u.pairs[p].a for u in updates if p in u.pairs), key=len) for p in paths}
    return [
        LoraAdapter({p: replace(pair, a=shared[p][: pair.rank].clone()) for p, pair in u.pairs.items()}, u.dense)
        for u in updates
    ]


def linear(*ranks: int) -> list[LoraAdapter]:
    return frozen([client({"m": rank}, 10 + k, dtype=torch.float64) for k, rank in enumerate(ranks)])


def test_ffa_gives_the_worked_numbers():
    updates = [
        LoraAdapter({"m": LoraPair(torch.tensor(A[: len(b[0])]).double(), torch.tensor(b).double())}) for b in F1_B
    ]
    pair = aggregate("ffa", updates, F1_WEIGHTS).pairs["m"]
    assert (pair.a.tolist(), pair.b.tolist()) == (A, WORKED_B)
    assert (pair.b @ pair.a).tolist() == [[7.5, 9.0], [15.5, 18.0]]


def test_oracle_gives_the_worked_numbers():
    clients = [(A[: len(b[0])], b, 1.0) for b in F1_B]
    assert ffa(clients, F1_WEIGHTS) == (A, WORKED_B)


@settings(derandomize=True, max_examples=40)
@given(cohort=cohorts())
def test_product_is_the_weighted_mean_of_the_products(cohort: tuple[list[LoraAdapter], list[float]]):
    updates, weights = frozen(cohort[0]), cohort[1]
    result = aggregate("ffa", updates, weights)
    assert distance(result, by_oracle("ffa", updates, weights)) <= max(map(tolerance, updates))
    for path, pair in result.pairs.items():
        terms = [w / sum(weights) * dense_product(u.pairs[path]) for u, w in zip(updates, weights, strict=True)]
        rounding = 1e-5 if pair.a.dtype == torch.float32 else 1e-11
        scale = max(1.0, *(float(t.abs().max()) for t in terms))
        torch.testing.assert_close(dense_product(pair), torch.stack(terms).sum(0), rtol=0, atol=rounding * scale)


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts())
def test_frozen_factor_comes_back_to_the_bit(cohort: tuple[list[LoraAdapter], list[float]]):
    updates = frozen(cohort[0])
    for path, pair in aggregate("ffa", updates, cohort[1]).pairs.items():
        longest = max((u.pairs[path].a for u in updates), key=len)
        assert torch.equal(pair.a, longest)


def test_mean_over_owners_is_not_the_mean_of_the_products():
    updates, weights = linear(1, 3), [1.0, 1.0]
    exact, owned = (aggregate(name, updates, weights) for name in ("ffa", "rbla"))
    torch.testing.assert_close(owned.pairs["m"].b[:, 1:], 2 * exact.pairs["m"].b[:, 1:])


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts(min_clients=2))
def test_clients_with_an_a_of_their_own_are_refused(cohort: tuple[list[LoraAdapter], list[float]]):
    updates = frozen(cohort[0])
    path, pair = next(iter(updates[1].pairs.items()))
    moved = pair.a.clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], moved[0, 0] + 1)
    assume(not torch.equal(moved, pair.a))
    updates[1] = LoraAdapter({**updates[1].pairs, path: replace(pair, a=moved)}, updates[1].dense)
    with pytest.raises(FrozenFactorError, match=rf"update 1, module {path}: .*got 1 of the \d shared rows differ"):
        aggregate("ffa", updates, cohort[1])


def test_other_rows_are_refused_across_blocks_too():
    left, right = start(), start()
    left.add(0, client({"m": 2}, 1), 1.0)
    right.add(64, client({"m": 2}, 2), 1.0)
    with pytest.raises(FrozenFactorError, match="a later block of updates, module m"):
        left.merge(right)


def test_refused_update_leaves_the_fold_as_it_was():
    updates = linear(1, 3)
    fold = start()
    fold.add(0, updates[0], 1.0)
    with pytest.raises(FrozenFactorError):
        fold.add(1, client({"a.first": 1, "m": 3}, 99, dtype=torch.float64), 1.0)
    fold.add(1, updates[1], 2.0)
    assert same_bits(fold.finish(None), aggregate("ffa", updates, [1.0, 2.0]))


def test_layers_that_do_not_fit_are_refused_as_such():
    with pytest.raises(AdapterShapeError, match="update 1, module m"):
        aggregate("ffa", [client({"m": 2}, 1), client({"m": 2}, 1, sizes=(6, 4))], [1.0, 1.0])


@pytest.mark.parametrize("spoilt", [0, 1])
def test_nan_in_the_frozen_factor_is_told_from_another_factor(spoilt: int):
    updates = linear(2, 2)
    updates[spoilt].pairs["m"].a[0, 0] = float("nan")
    with pytest.raises(NonFiniteUpdateError, match=f"update {spoilt}, tensor m factor a"):
        aggregate("ffa", updates, [1.0, 1.0])


def test_result_does_not_depend_on_the_cut_and_folds_travel():
    updates = linear(*(1 + k % 3 for k in range(70)))
    weights = [1.0 + k % 5 for k in range(70)]
    left, right = start(), start()
    for position, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        (left if position < 64 else right).add(position, update, weight)
    right = pickle.loads(pickle.dumps(right))  # noqa: S301 - our own bytes
    right.merge(left)
    assert same_bits(right.finish(None), aggregate("ffa", updates, weights))


def test_bf16_columns_are_rounded_once():
    updates = frozen([client({"m": rank}, rank, dtype=torch.bfloat16) for rank in (1, 2, 3)])
    weights = [1.0, 2.0, 4.0]
    exact = by_oracle("ffa", updates, weights).pairs["m"].b
    assert torch.equal(aggregate("ffa", updates, weights).pairs["m"].b, exact.bfloat16())


def test_noop_round_shrinks_a_slot_by_its_coverage():
    old = client({"m": 3}, 5, dtype=torch.float64)
    new = aggregate("ffa", [prefix(old, {"m": r}) for r in (1, 2, 3)], [2.0, 3.0, 5.0], previous=old).pairs["m"]
    torch.testing.assert_close(new.b, old.pairs["m"].b * torch.tensor([1.0, 0.8, 0.5]).double())


def test_slots_nobody_owned_keep_the_previous_value():
    old = client({"m": 4}, 5, dtype=torch.float64)
    new = aggregate("ffa", [prefix(old, {"m": r}) for r in (1, 2)], [1.0, 1.0], previous=old).pairs["m"]
    assert torch.equal(new.a, old.pairs["m"].a)
    assert torch.equal(new.b[:, 2:], old.pairs["m"].b[:, 2:])
    torch.testing.assert_close(new.b[:, 1], old.pairs["m"].b[:, 1] / 2)
