"""Norm clipping: worked numbers, the bound it promises, and what it cannot see."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import adapter_norm
from tasks.aggregators.robust.norm_clip import norm_clip
from tasks.aggregators.robust.screen import ScreenedFold
from tasks.aggregators.table import AGGREGATORS
from tests.aggregators.robust.cases import blown_up, neighbours, scalar
from tests.oracles.robust import median
from tests.strategies import cohorts


def test_norm_clip_gives_the_worked_numbers():
    # Norms 1, 2, 3, 100: median 2.5, limit 5.
    screened = norm_clip(2.0)([scalar(v) for v in (1.0, -2.0, 3.0, -100.0)], [1.0, 2.0, 3.0, 4.0])
    values = [float(u.pairs["m"].scaling * u.pairs["m"].a) for u in screened.updates]
    assert values == pytest.approx([1.0, -2.0, 3.0, -5.0])
    assert screened.weights == (1.0, 2.0, 3.0, 4.0)
    assert screened.notes == {3: "clipped to 0.05 of its norm"}


def test_norm_clip_draws_dense_tensors_to_their_median():
    # Heads 0, 1, 2, 100: median 1.5, distances 1.5, 0.5, 0.5, 98.5, their median 1, limit 2.
    screened = norm_clip(2.0)([scalar(1.0, head=h) for h in (0.0, 1.0, 2.0, 100.0)], [1.0] * 4)
    assert [float(u.dense["head"]) for u in screened.updates] == pytest.approx([0.0, 1.0, 2.0, 3.5])
    assert screened.notes == {3: "dense tensors drawn to 0.02 of their distance from the median"}


def test_both_parts_are_clipped_and_noted():
    updates = [*(scalar(1.0 + 0.1 * k, head=float(k)) for k in range(4)), scalar(1e6, head=-1e6)]
    notes = norm_clip()(updates, [1.0] * 5).notes
    assert list(notes) == [4]
    assert "of its norm; dense tensors drawn to" in notes[4]


@settings(derandomize=True, max_examples=15)
@given(cohort=cohorts(min_clients=3, max_clients=6), factor=st.floats(1.0, 4.0), size=st.floats(1.0, 1e8))
def test_no_norm_exceeds_the_factor_times_the_median(
    cohort: tuple[list[LoraAdapter], list[float]], factor: float, size: float
):
    updates, weights = [blown_up(cohort[0][0], size), *cohort[0][1:]], cohort[1]
    limit = factor * median([adapter_norm(u) for u in updates])
    screened = norm_clip(factor)(updates, weights)
    for before, after in zip(updates, screened.updates, strict=True):
        assert adapter_norm(after) == pytest.approx(min(adapter_norm(before), limit), rel=1e-9)
    assert limit <= factor * max(adapter_norm(u) for u in updates[1:])


def test_updates_within_the_limit_are_handed_on_as_they_are():
    updates = neighbours(5)
    screened = norm_clip(10.0)(updates, [1.0] * 5)
    assert all(after is before for after, before in zip(screened.updates, updates, strict=True))
    assert not screened.notes


def test_counters_and_missing_dense_tensors_are_left_alone():
    steps = {"steps": torch.tensor(7)}
    updates = [LoraAdapter(scalar(1.0).pairs, steps), scalar(1.0, head=1.0), scalar(1.0, head=2.0), scalar(1.0)]
    screened = norm_clip()(updates, [1.0] * 4)
    assert torch.equal(screened.updates[0].dense["steps"], steps["steps"])
    assert [sorted(u.dense) for u in screened.updates] == [["steps"], ["head"], ["head"], []]
    assert not screened.notes


def test_the_only_client_that_learnt_is_left_as_it_is_and_noted():
    updates = [scalar(0.0, head=1.0), scalar(0.0, head=1.0), scalar(5.0, head=9.0)]
    screened = norm_clip()(updates, [1.0] * 3)
    assert all(after is before for after, before in zip(screened.updates, updates, strict=True))
    assert screened.notes == {2: "not clipped: the median norm is 0; dense tensors not drawn: the median distance is 0"}


def test_a_median_of_nought_in_one_part_does_not_spare_the_other():
    updates = [*(scalar(0.0, head=float(k)) for k in range(4)), scalar(7.0, head=1e3)]
    screened = norm_clip()(updates, [1.0] * 5)
    assert adapter_norm(screened.updates[4]) == 7.0
    # Heads 0, 1, 2, 3, 1000: median 2, distances 2, 1, 0, 1, 998, their median 1, limit 2.
    assert float(screened.updates[4].dense["head"]) == pytest.approx(4.0)
    assert list(screened.notes) == [4]


def test_a_large_factor_hidden_behind_a_small_one_reaches_factor_means_only():
    updates = neighbours(5, rank=1)
    hidden = {p: replace(q, a=q.a * 1e6, b=q.b / 1e6) for p, q in updates[0].pairs.items()}
    attacked = [LoraAdapter(hidden, updates[0].dense), *updates[1:]]
    norms = {}
    for name in ("flexlora", "rbla"):
        fold = ScreenedFold(AGGREGATORS[name].start, norm_clip())
        for position, update in enumerate(attacked):
            fold.add(position, update, 1.0)
        norms[name] = adapter_norm(fold.finish(None))
    honest = max(adapter_norm(u) for u in updates)
    assert norms["flexlora"] <= 2 * honest
    assert norms["rbla"] > 1e4 * honest
    assert math.isfinite(norms["rbla"])
