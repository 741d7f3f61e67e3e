"""FedSA: `a` is RBLA's, `b` is nobody's but the client's own."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LoraAdapter, fold_scaling, prefix
from tasks.aggregators.cohort import aggregate
from tasks.errors import NonFiniteUpdateError
from tests.aggregators.cases import F1_A, F1_B, F1_WEIGHTS, by_oracle, client, distance, f1, same_bits, tolerance
from tests.oracles.fedsa import fedsa
from tests.strategies import cohorts

WORKED_A = [[4.0, 5.0], [7.0, 8.0]]


def test_fedsa_gives_the_worked_numbers():
    pair = aggregate("fedsa", f1(), F1_WEIGHTS).pairs["m"]
    assert (pair.a.tolist(), pair.b.tolist()) == (WORKED_A, [[0.0, 0.0], [0.0, 0.0]])


def test_oracle_gives_the_worked_numbers():
    clients = [(a, b, 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    assert fedsa(clients, F1_WEIGHTS) == (WORKED_A, [[0.0, 0.0], [0.0, 0.0]])


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts())
def test_shared_factor_is_averaged_as_rbla_does(cohort: tuple[list[LoraAdapter], list[float]]):
    result, owned = aggregate("fedsa", *cohort), aggregate("rbla", *cohort)
    assert distance(result, by_oracle("fedsa", *cohort)) <= max(map(tolerance, cohort[0]))
    assert all(torch.equal(pair.a, owned.pairs[path].a) for path, pair in result.pairs.items())


@settings(derandomize=True, max_examples=25)
@given(cohort=cohorts(min_clients=2))
def test_what_clients_hold_in_b_changes_nothing(cohort: tuple[list[LoraAdapter], list[float]]):
    updates, weights = cohort
    others = [
        LoraAdapter({p: replace(pair, b=pair.b * 3 + 1, scaling=7.0) for p, pair in u.pairs.items()}, u.dense)
        for u in updates
    ]
    for previous in (None, updates[0]):
        assert same_bits(
            aggregate("fedsa", updates, weights, previous=previous),
            aggregate("fedsa", others, weights, previous=previous),
        )


def test_b_is_the_previous_adapters_at_scaling_one_and_zero_in_new_slots():
    old = LoraAdapter({"m": replace(client({"m": 2}, 1).pairs["m"], scaling=0.5)})
    before = {name: t.clone() for name, t in (("a", old.pairs["m"].a), ("b", old.pairs["m"].b))}
    result = aggregate("fedsa", [client({"m": 1}, 2), client({"m": 3}, 3)], [1.0, 1.0], previous=old).pairs["m"]
    assert (result.rank, result.scaling) == (3, 1.0)
    assert torch.equal(result.b[:, :2], before["b"] / 2)
    assert not result.b[:, 2:].any()
    assert torch.equal(old.pairs["m"].b, before["b"])


def test_slots_nobody_owned_keep_both_factors():
    old = fold_scaling(client({"m": 4}, 1))
    new = aggregate("fedsa", [prefix(client({"m": 4}, 2), {"m": 2})], [1.0], previous=old).pairs["m"]
    assert torch.equal(new.a[2:], old.pairs["m"].a[2:])
    assert torch.equal(new.b, old.pairs["m"].b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_client_that_diverged_is_named_though_its_b_is_not_used(value: float):
    bad = client({"m": 2}, 1)
    bad.pairs["m"].b[0, 0] = value
    with pytest.raises(NonFiniteUpdateError, match="update 1, tensor m factor b"):
        aggregate("fedsa", [client({"m": 2}, 2), bad], [1.0, 1.0], previous=client({"m": 2}, 3))
