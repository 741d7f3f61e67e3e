"""Trimmed mean of canonical factors: oracle, what is trimmed, and the notes where nothing is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import dense_product
from tasks.aggregators.robust.trimmed_mean import num_trimmed, trimmed_mean
from tests.aggregators.robust.cases import blown_up, neighbours, scalar
from tests.oracles import robust as oracle
from tests.strategies import cohorts


def consensus_of(updates: list[LoraAdapter], trim_frac: float = 0.2) -> LoraAdapter:
    (update,) = trimmed_mean(trim_frac)(updates, [1.0] * len(updates)).updates
    return update


def test_trimmed_mean_gives_the_worked_numbers():
    # Of 5 values one goes at each end.
    result = consensus_of([scalar(1.0, head=h) for h in (3.0, -100.0, 1.0, 2.0, 1e6)])
    assert float(result.dense["head"]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("count", "trim_frac", "expected"),
    [(4, 0.2, 0), (5, 0.2, 1), (100, 0.29, 29), (10, 0.3, 3), (9, 0.49, 4), (8, 0, 0)],
)
def test_num_trimmed_is_the_whole_part_of_the_share(count: int, trim_frac: float, expected: int):
    assert num_trimmed(count, trim_frac) == expected


@settings(derandomize=True, max_examples=15)
@given(
    cohort=cohorts(min_clients=1, max_clients=7, dtypes=(torch.float64,)), trim_frac=st.sampled_from((0.0, 0.2, 0.45))
)
def test_trimmed_mean_agrees_with_the_oracle(cohort: tuple[list[LoraAdapter], list[float]], trim_frac: float):
    updates, _ = cohort
    result = consensus_of(updates, trim_frac)
    for path, pair in result.pairs.items():
        factors = [oracle.canonical(dense_product(u.pairs[path]).numpy(), u.ranks[path]) for u in updates]
        a, b = oracle.over_owners(factors, lambda values: oracle.trimmed_mean(values, trim_frac))
        np.testing.assert_allclose(pair.a.numpy(), a, atol=1e-8)
        np.testing.assert_allclose(pair.b.numpy(), b, atol=1e-8)


@pytest.mark.parametrize("size", [1e6, -1e6])
def test_every_coordinate_lies_between_two_honest_ones(size: float):
    updates = neighbours(5)
    result = consensus_of([blown_up(updates[0], size), *updates[1:]]).pairs["m"]
    honest = [oracle.canonical(dense_product(u.pairs["m"]).numpy(), 3) for u in updates[1:]]
    for ours, theirs in zip((result.a, result.b), zip(*honest, strict=True), strict=True):
        assert (ours.numpy() >= np.min(theirs, axis=0) - 1e-5).all()
        assert (ours.numpy() <= np.max(theirs, axis=0) + 1e-5).all()


def test_a_cohort_too_small_to_trim_is_noted_for_everyone():
    notes = trimmed_mean(0.2)(neighbours(4), [1.0] * 4).notes
    text = "4 of its 4 slots and dense tensors have so few owners that trimming 0.2 at each end trims none"
    assert notes == dict.fromkeys(range(4), text)


def test_only_owners_of_untrimmed_slots_are_noted():
    low, high = neighbours(4, rank=1), neighbours(1, rank=2)
    notes = trimmed_mean(0.2)([*low, *high], [1.0] * 5).notes
    assert list(notes) == [4]
    assert notes[4].startswith("1 of its 3 slots")
