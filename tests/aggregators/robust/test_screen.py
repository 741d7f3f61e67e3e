"""The screened fold: same bits for any arrival, refusals that name the update, and every rule before every method."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.robust.screen import ALONE, Screened, ScreenedFold
from tasks.aggregators.robust.table import ROBUST_RULES
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import (
    AdapterShapeError,
    ConfigError,
    EmptyCohortError,
    FoldOrderError,
    InvalidWeightError,
    NonFiniteUpdateError,
)
from tests.aggregators.cases import client, same_bits, tensors, tiny_cohort
from tests.aggregators.robust.cases import neighbours

RULES = sorted(ROBUST_RULES)
METHODS = sorted(name for name, row in AGGREGATORS.items() if row.sends == "both")
Cohort = tuple[Sequence[LoraAdapter], Sequence[float]]


def keep_all(updates: Sequence[LoraAdapter], weights: Sequence[float]) -> Screened:
    return Screened(tuple(updates), tuple(weights), {len(updates) - 1: "the last one"})


def drop_first(updates: Sequence[LoraAdapter], weights: Sequence[float]) -> Screened:
    return Screened(tuple(updates[1:]), tuple(weights[1:]), {0: "left out"})


def fold_over(positions: Sequence[int], cohort: Cohort, *, rule: str = "", method: str = "rbla") -> ScreenedFold:
    screen = ROBUST_RULES[rule].start() if rule else keep_all
    fold = ScreenedFold(AGGREGATORS[method].start, screen)
    for position in positions:
        fold.add(position, cohort[0][position], cohort[1][position])
    return fold


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_before_every_method_gives_the_same_bits_for_any_arrival_and_tree(rule: str, method: str):
    rng = np.random.default_rng(len(rule) + len(method))
    cohort = tiny_cohort(7, max_rank=3 if AGGREGATORS[method].mixed_ranks else 2, seed=5)
    if not AGGREGATORS[method].mixed_ranks:
        cohort = ([client({"m": 2}, 31 * k) for k in range(7)], cohort[1])
    straight = fold_over(range(7), cohort, rule=rule, method=method)
    expected = straight.finish(None)
    assert all(bool(torch.isfinite(t).all()) for t in tensors(expected).values())
    for _ in range(3):
        parts = np.array_split(rng.permutation(7), [2, 3, 5])
        folds = [fold_over([int(p) for p in part], cohort, rule=rule, method=method) for part in parts]
        while len(folds) > 1:
            left, right = (folds.pop(int(rng.integers(len(folds)))) for _ in range(2))
            left.merge(right)
            folds.append(left)
        assert same_bits(folds[0].finish(None), expected)
        assert folds[0].notes == straight.notes


def test_a_screen_that_keeps_all_is_the_aggregator():
    cohort = tiny_cohort(5)
    fold = fold_over([3, 0, 4, 2, 1], cohort)
    assert not fold.notes
    assert same_bits(fold.finish(cohort[0][0]), aggregate("rbla", *cohort, previous=cohort[0][0]))
    assert fold.notes == {4: "the last one"}


def test_notes_name_positions_and_places_are_closed_up():
    updates, weights = tiny_cohort(9)
    fold = ScreenedFold(AGGREGATORS["rbla"].start, drop_first)
    for position in (8, 3, 5):
        fold.add(position, updates[position], weights[position])
    rest = aggregate("rbla", [updates[5], updates[8]], [weights[5], weights[8]])
    assert same_bits(fold.finish(None), rest)
    assert fold.notes == {3: "left out"}


@pytest.mark.parametrize("rule", RULES)
def test_one_update_alone_passes_with_a_note(rule: str):
    cohort = tiny_cohort(5)
    fold = fold_over([2], cohort, rule=rule)
    assert same_bits(fold.finish(None), aggregate("rbla", cohort[0][2:3], cohort[1][2:3]))
    assert fold.notes == {2: ALONE}


def test_what_is_added_is_copied():
    updates, weights = tiny_cohort(2)
    expected = aggregate("rbla", updates, weights)
    fold = fold_over(range(2), (updates, weights))
    updates[0].pairs["m"].a.fill_(9.0)
    updates[1].dense["head"].fill_(9.0)
    assert same_bits(fold.finish(None), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_update_is_named_and_the_fold_goes_on(value: float):
    updates, weights = tiny_cohort(3)
    spoilt = client({"m": 2}, 3)
    spoilt.pairs["m"].b[0, 0] = value
    fold = fold_over(range(2), (updates, weights))
    with pytest.raises(NonFiniteUpdateError, match="update 2, tensor m factor b"):
        fold.add(2, spoilt, 1.0)
    fold.add(2, updates[2], weights[2])
    assert same_bits(fold.finish(None), aggregate("rbla", updates, weights))


def test_an_update_whose_squares_would_overflow_is_named():
    huge = client({"m": 1}, 1, dtype=torch.float64)
    huge.pairs["m"].a.fill_(1e120)
    stretched = LoraAdapter({"m": replace(client({"m": 1}, 1).pairs["m"], scaling=float("inf"))})
    head = LoraAdapter({}, {"head": torch.full((2,), 1e300, dtype=torch.float64)})
    for update, name in ((huge, "module m"), (stretched, "module m"), (head, "tensor head")):
        with pytest.raises(NonFiniteUpdateError, match=f"update 4, {name}: is too large"):
            fold_over([], ((), ())).add(4, update, 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_float32_numbers_are_measured(rule: str):
    updates = neighbours(5)
    limit = torch.finfo(torch.float32).max
    extreme = LoraAdapter({"m": LoraPair(torch.full((3, 6), limit), torch.full((7, 3), limit))})
    screened = ROBUST_RULES[rule].start()([*updates, extreme], [1.0] * 6)
    assert all(np.isfinite(w) and w > 0 for w in screened.weights)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_named(weight: float):
    with pytest.raises(InvalidWeightError, match="update 4"):
        fold_over([], ((), ())).add(4, client({"m": 1}, 1), weight)


@pytest.mark.parametrize("position", [-1, 1])
def test_a_place_is_taken_once_and_from_0(position: int):
    with pytest.raises(FoldOrderError, match=f"update {position}"):
        fold_over(range(3), tiny_cohort(3)).add(position, client({"m": 1}, 1), 1.0)


def test_folds_that_share_a_position_or_are_one_do_not_merge():
    cohort = tiny_cohort(4)
    left, right = fold_over([0, 1, 2], cohort), fold_over([3, 2], cohort)
    with pytest.raises(FoldOrderError, match="both folds hold positions 2"):
        left.merge(right)
    with pytest.raises(FoldOrderError):
        left.merge(left)
    assert same_bits(left.finish(None), aggregate("rbla", cohort[0][:3], cohort[1][:3]))


def test_a_spent_fold_is_refused():
    cohort = tiny_cohort(4)
    left, right = fold_over([0, 1], cohort), fold_over([2], cohort)
    left.merge(right)
    left.finish(None)
    for misuse in (
        lambda: left.finish(None),
        lambda: left.add(3, cohort[0][3], 1.0),
        lambda: right.finish(None),
        lambda: fold_over([], cohort).merge(right),
    ):
        with pytest.raises(FoldOrderError, match="finished or merged away"):
            misuse()


def test_an_empty_fold_is_refused_and_merges_as_nothing():
    with pytest.raises(EmptyCohortError):
        fold_over([], ((), ())).finish(None)
    cohort = tiny_cohort(2)
    fold = fold_over([], ((), ()))
    fold.merge(fold_over(range(2), cohort))
    assert same_bits(fold.finish(None), aggregate("rbla", *cohort))


def test_updates_that_do_not_fit_each_other_are_named():
    misfits = {
        "module m": client({"m": 1}, 9, sizes=(6, 4), dense={"head": torch.zeros(2)}),
        "tensor head": client({"m": 1}, 9, dense={"head": torch.zeros(3)}),
    }
    for name, misfit in misfits.items():
        fold = fold_over([0, 2], tiny_cohort(3))
        fold.add(1, misfit, 1.0)
        with pytest.raises(AdapterShapeError, match=f"update 1, {name}"):
            fold.finish(None)


def test_a_module_of_rank_0_is_named():
    empty = LoraAdapter({"m": LoraPair(torch.zeros(0, 5), torch.zeros(4, 0))})
    with pytest.raises(AdapterShapeError, match="update 0, module m"):
        fold_over([], ((), ())).add(0, empty, 1.0)


def test_a_cohort_too_small_for_the_rule_is_an_error_not_a_guess():
    with pytest.raises(ConfigError, match="got 3 updates; expected 5"):
        fold_over(range(3), tiny_cohort(3), rule="krum").finish(None)
