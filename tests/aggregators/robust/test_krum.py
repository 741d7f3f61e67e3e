"""Krum and Multi-Krum: worked numbers, the dense oracle, and cohorts that are too small."""

import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.krum import krum, krum_fewest, multi_krum, multi_krum_fewest
from tasks.errors import ConfigError
from tests.aggregators.cases import same_bits
from tests.aggregators.robust.cases import blown_up, neighbours, point, scalar
from tests.oracles.robust import krum_scores
from tests.strategies import cohorts

Cohort = tuple[list[LoraAdapter], list[float]]
LINE = [scalar(v) for v in (0.0, 1.0, 2.0, 3.0, 100.0)]  # scores with f = 1: 5, 2, 2, 5, 19013


def chosen(updates: list[LoraAdapter], kept: tuple[LoraAdapter, ...]) -> list[int]:
    return [next(k for k, u in enumerate(updates) if u is one) for one in kept]


def test_krum_gives_the_worked_numbers_and_the_first_of_equals():
    screened = krum(1)(LINE, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert chosen(LINE, screened.updates) == [1]
    assert screened.weights == (2.0,)
    assert screened.notes[4] == "left out: its score is 1.9e+04, the largest one kept is 2"
    assert sorted(screened.notes) == [0, 2, 3, 4]


def test_multi_krum_keeps_all_but_the_attackers_with_their_weights():
    screened = multi_krum(1)(LINE, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert chosen(LINE, screened.updates) == [0, 1, 2, 3]
    assert screened.weights == (1.0, 2.0, 3.0, 4.0)
    assert list(screened.notes) == [4]


def test_multi_krum_of_one_is_krum():
    one, other = krum(1)(LINE, [1.0] * 5), multi_krum(1, 1)(LINE, [1.0] * 5)
    assert (one.updates, one.weights, one.notes) == (other.updates, other.weights, other.notes)


@settings(derandomize=True, max_examples=15)
@given(cohort=cohorts(min_clients=5, max_clients=8))
def test_choices_agree_with_the_oracle_on_dense_products(cohort: Cohort):
    updates, weights = cohort
    scores = krum_scores([point(u) for u in updates], 1)
    for count, screened in ((1, krum(1)(updates, weights)), (3, multi_krum(1, 3)(updates, weights))):
        kept = chosen(updates, screened.updates)
        assert len(kept) == count
        # Scores that tie but for rounding may fall either way.
        assert max(scores[k] for k in kept) <= sorted(scores)[count - 1] * (1 + 1e-9)


@pytest.mark.parametrize("num_attackers", [1, 2])
@pytest.mark.parametrize("size", [1e6, -1e6])
def test_attackers_are_left_out(num_attackers: int, size: float):
    updates = neighbours(7)
    attacked = [*updates[num_attackers:], *(blown_up(u, size) for u in updates[:num_attackers])]
    honest = range(7 - num_attackers)
    assert chosen(attacked, krum(num_attackers)(attacked, [1.0] * 7).updates)[0] in honest
    assert chosen(attacked, multi_krum(num_attackers)(attacked, [1.0] * 7).updates) == list(honest)


def test_a_hostile_head_is_seen():
    updates = neighbours(5)
    updates[2] = LoraAdapter(updates[2].pairs, {"head": torch.full((4,), 1e6)})
    assert list(multi_krum(1)(updates, [1.0] * 5).notes) == [2]


def test_a_missing_module_counts_as_zero():
    updates = neighbours(5)
    updates[3] = LoraAdapter({}, updates[3].dense)
    assert list(multi_krum(1)(updates, [1.0] * 5).notes) == [3]


def test_the_result_is_one_clients_update_bit_for_bit():
    updates = neighbours(6)
    (kept,) = krum(1)(updates, [1.0] * 6).updates
    assert any(same_bits(kept, u) for u in updates)


@pytest.mark.parametrize(("num_attackers", "num_updates"), [(1, 4), (1, 2), (2, 6), (0, 2)])
def test_a_cohort_too_small_is_refused_with_the_numbers(num_attackers: int, num_updates: int):
    fewest = 2 * num_attackers + 3
    message = f"num_attackers {num_attackers} .*got {num_updates} updates; expected {fewest} or more"
    for rule in (krum(num_attackers), multi_krum(num_attackers)):
        with pytest.raises(ConfigError, match=message):
            rule(neighbours(num_updates), [1.0] * num_updates)
    assert len(krum(num_attackers)(neighbours(fewest), [1.0] * fewest).updates) == 1


def test_more_selected_than_can_be_honest_is_refused():
    with pytest.raises(ConfigError, match="num_selected 5 need a larger cohort; got 5 updates; expected 6"):
        multi_krum(1, 5)(LINE, [1.0] * 5)
    assert (krum_fewest(2), multi_krum_fewest(2), multi_krum_fewest(1, 9)) == (7, 7, 10)
