"""Folds give the same bits whoever arrives first and however the tree is cut, and refuse to be misused."""

import gc
import pickle
import weakref
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import truncate
from tasks.aggregators import ordered
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import BLOCK
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import AdapterShapeError, EmptyCohortError, FoldOrderError, InvalidWeightError
from tests.aggregators.cases import allowance, by_oracle, client, gap, same_bits, suited, tiny_cohort

METHODS = sorted(AGGREGATORS)


def cohort_of(name: str, count: int, seed: int = 0) -> tuple[list[LoraAdapter], list[float]]:
    updates, weights = tiny_cohort(count, seed=seed, max_rank=3 if AGGREGATORS[name].mixed_ranks else 1)
    return suited(AGGREGATORS[name], updates), weights


def fold_over(name: str, positions: Iterable[int], updates: list[LoraAdapter], weights: list[float]) -> Fold:
    fold = AGGREGATORS[name].start()
    for position in positions:
        fold.add(position, updates[position], weights[position])
    return fold


def merged_at_random(
    name: str, blocks: list[list[int]], cohort: tuple[list[LoraAdapter], list[float]], rng: np.random.Generator
) -> Fold:
    """Deal blocks to folds in any order, then merge the folds pair by pair in any order."""
    dealt: list[list[int]] = [[] for _ in range(rng.integers(1, len(blocks) + 1))]
    for block in rng.permutation(len(blocks)):
        dealt[rng.integers(len(dealt))].append(int(block))
    folds = [fold_over(name, [p for b in part for p in blocks[b]], *cohort) for part in dealt]
    while len(folds) > 1:
        left, right = (folds.pop(int(rng.integers(len(folds)))) for _ in range(2))
        left.merge(right)
        folds.append(left)
    return folds[0]


@pytest.mark.parametrize("name", METHODS)
@settings(derandomize=True, max_examples=40)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 31), has_gaps=st.booleans())
def test_result_does_not_depend_on_arrival_or_cut(name: str, seed: int, count: int, has_gaps: bool):
    rng = np.random.default_rng(seed)
    updates, weights = cohort_of(name, count, seed)
    present = [p for p in range(count) if not has_gaps or rng.random() < 0.6] or [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "BLOCK", 4)
        in_order = fold_over(name, present, updates, weights).finish(None)
        blocks = [[p for p in present if p // 4 == b] for b in sorted({p // 4 for p in present})]
        any_order = merged_at_random(name, blocks, (updates, weights), rng).finish(None)
    assert same_bits(in_order, any_order)


@pytest.mark.parametrize("name", METHODS)
def test_result_does_not_depend_on_the_cut_at_the_real_block_size(name: str):
    updates, weights = cohort_of(name, 3 * BLOCK + 9)
    first = fold_over(name, range(2 * BLOCK, 3 * BLOCK + 9), updates, weights)
    second = fold_over(name, range(2 * BLOCK), updates, weights)
    first.merge(second)
    result = first.finish(None)
    assert same_bits(result, aggregate(name, updates, weights))
    row = AGGREGATORS[name]
    assert gap(row, result, by_oracle(name, updates, weights)) <= allowance(row, *updates)


@pytest.mark.parametrize("name", [n for n in METHODS if AGGREGATORS[n].noop_fixed_point])
def test_noop_round_is_a_fixed_point_across_blocks(name: str):
    row = AGGREGATORS[name]
    (old,) = suited(row, [LoraAdapter({"m": truncate(client({"m": 3}, 77).pairs["m"], 3)})])
    ranks = [3] * 200 if not row.mixed_ranks else [1 + k % 3 for k in range(200)]
    returned = [row.share(old, {"m": rank}) for rank in ranks]
    result = aggregate(name, returned, [1.0 + 0.1 * (k % 7) for k in range(200)], previous=old)
    assert same_bits(result, old) or row.averages == "products"
    assert gap(row, result, old) <= allowance(row, old)


@pytest.mark.parametrize("name", METHODS)
def test_number_of_threads_does_not_change_a_bit(name: str):
    row = AGGREGATORS[name]
    # Linear algebra promises this for small factors only; sums of slots keep it at any size.
    only_sums = row.averages == "slots" and row.weighs_by_examples
    sizes = (40_009, 33_331) if only_sums else (301, 257)
    updates = suited(row, [client({"m": rank}, rank, sizes=sizes) for rank in (3, 2, 4)])
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(aggregate(name, updates, [1.0, 2.0, 4.0], previous=updates[0]))
    finally:
        torch.set_num_threads(threads)
    assert same_bits(*results)


@pytest.mark.parametrize("name", METHODS)
def test_fold_travels_between_processes(name: str):
    updates, weights = cohort_of(name, BLOCK + 3)
    left = fold_over(name, range(BLOCK), updates, weights)
    right = pickle.loads(pickle.dumps(fold_over(name, range(BLOCK, BLOCK + 3), updates, weights)))  # noqa: S301 - our own bytes
    left.merge(right)
    assert same_bits(left.finish(None), aggregate(name, updates, weights))


def test_fold_keeps_no_update():
    fold = AGGREGATORS["rbla"].start()
    update = client({"m": 2}, 1)
    watched = [weakref.ref(update.pairs["m"].a), weakref.ref(update.pairs["m"].b)]
    fold.add(0, update, 1.0)
    del update
    gc.collect()
    assert [w() for w in watched] == [None, None]


@pytest.mark.parametrize("positions", [(0, 0), (5, 3), (0, BLOCK, 1), (BLOCK - 1, 0), (-1,)])
def test_position_that_was_passed_is_refused(positions: tuple[int, ...]):
    fold = AGGREGATORS["rbla"].start()
    for position in positions[:-1]:
        fold.add(position, client({"m": 1}, 1), 1.0)
    with pytest.raises(FoldOrderError, match="place has been passed"):
        fold.add(positions[-1], client({"m": 1}, 1), 1.0)


def test_cut_inside_a_block_is_refused_and_leaves_both_folds_usable():
    updates, weights = tiny_cohort(12)
    left = fold_over("rbla", range(10), updates, weights)
    right = fold_over("rbla", range(10, 12), updates, weights)
    with pytest.raises(FoldOrderError, match="multiples of 64"):
        left.merge(right)
    assert same_bits(left.finish(None), aggregate("rbla", updates[:10], weights[:10]))
    assert same_bits(right.finish(None), aggregate("rbla", updates[10:], weights[10:]))


def test_folds_of_different_methods_do_not_merge():
    left, right = (fold_over(n, [p], *cohort_of(n, 65)) for n, p in (("rbla", 0), ("zero_pad", 64)))
    with pytest.raises(FoldOrderError, match="another method"):
        left.merge(right)


def test_fold_does_not_merge_with_itself():
    fold = fold_over("rbla", range(3), *tiny_cohort(3))
    with pytest.raises(FoldOrderError):
        fold.merge(fold)


def test_spent_fold_is_refused():
    updates, weights = tiny_cohort(65)
    left, right = fold_over("rbla", range(3), updates, weights), fold_over("rbla", [64], updates, weights)
    left.merge(right)
    with pytest.raises(FoldOrderError, match="merged away"):
        right.finish(None)
    left.finish(None)
    for misuse in (lambda: left.finish(None), lambda: left.add(70, updates[0], 1.0), lambda: left.merge(right)):
        with pytest.raises(FoldOrderError, match="finished"):
            misuse()


def test_empty_fold_is_refused_and_merges_as_nothing():
    with pytest.raises(EmptyCohortError):
        AGGREGATORS["rbla"].start().finish(None)
    updates, weights = tiny_cohort(3)
    fold = AGGREGATORS["rbla"].start()
    fold.merge(fold_over("rbla", range(3), updates, weights))
    fold.merge(AGGREGATORS["rbla"].start())
    assert same_bits(fold.finish(None), aggregate("rbla", updates, weights))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_weight_is_refused_at_the_door(weight: float):
    fold = AGGREGATORS["rbla"].start()
    with pytest.raises(InvalidWeightError, match="update 4"):
        fold.add(4, client({"m": 1}, 1), weight)


def test_refused_update_leaves_the_fold_as_it_was():
    updates, weights = tiny_cohort(4)
    fold = fold_over("rbla", range(3), updates, weights)
    misfit = client({"a.first": 2, "m": 2}, 9, sizes=(6, 4))
    with pytest.raises(AdapterShapeError, match=r"update 3, module m"):
        fold.add(3, misfit, 1.0)
    fold.add(3, updates[3], weights[3])
    assert same_bits(fold.finish(None), aggregate("rbla", updates, weights))
