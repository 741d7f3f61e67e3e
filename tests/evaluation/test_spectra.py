"""Shares of energy against plain sums over numpy's dense singular values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.products import spectrum
from tasks.evaluation.spectra import collapse_index, effective_rank, partition_energy, slot_energy
from tests.strategies import adapters

laws = settings(max_examples=60, derandomize=True)
sigmas = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8).map(lambda found: sorted(found, reverse=True))


def spectra(**rows):
    return {path: np.array(row, dtype=np.float64) for path, row in rows.items()}


def dense_sigma(pair):
    return np.linalg.svd(pair.scaling * (pair.b.double().numpy() @ pair.a.double().numpy()), compute_uv=False)


# Energies 9, 4, 1, 1 and 4, 1: 20 in all.
TWO = spectra(q=[3, 2, 1, 1], v=[2, 1])


def test_partitions_are_the_worked_ones():
    assert partition_energy(spectra(m=[3, 2, 1, 1]), [{"m": 1}, {"m": 4}]) == pytest.approx({"1-1": 9 / 15, "2-4": 0.4})
    assert partition_energy(spectra(m=[3, 2, 1, 1]), [{"m": 3}]) == pytest.approx({"1-3": 14 / 15, "4+": 1 / 15})
    # A client of rank 16 can hold no more than the layer's two.
    assert partition_energy(spectra(m=[2, 1]), [{"m": 1}, {"m": 16}]) == pytest.approx({"1-1": 0.8, "2-16": 0.2})


def test_modules_are_cut_at_their_own_ranks_and_summed():
    levels = [{"q": 2, "v": 1}, {"q": 4, "v": 2}]
    assert partition_energy(TWO, levels) == pytest.approx({"1-2": 17 / 20, "3-4": 3 / 20})
    assert collapse_index(TWO, levels) == pytest.approx(3 / 20)
    # The larger client does not adapt v: there its level is the smallest one.
    assert partition_energy(TWO, [{"q": 2, "v": 1}, {"q": 4}]) == pytest.approx(
        {"1-2": 17 / 20, "3-4": 2 / 20, "5+": 1 / 20}
    )
    for repeats in (1, 3):
        levels = [{"q": 1, "v": 1}, *({"q": 2, "v": 2} for _ in range(repeats)), {"q": 4}]
        assert partition_energy(TWO, levels) == pytest.approx({"1-1": 13 / 20, "2-2": 4 / 20, "3-4": 3 / 20})
    # Nobody adapts v: it takes no part.
    assert partition_energy(TWO, [{"q": 1}, {"q": 4}]) == pytest.approx({"1-1": 9 / 15, "2-4": 6 / 15})
    assert collapse_index(TWO, [{"q": 1}, {"q": 4}]) == pytest.approx(6 / 15)


def test_ranks_that_differ_in_one_module_only_share_a_name():
    levels = [{"q": 4, "v": 1}, {"q": 4, "v": 2}]
    assert partition_energy(TWO, levels) == pytest.approx({"1-4": 1.0})
    assert collapse_index(TWO, levels) == pytest.approx(1 / 20)


def test_slot_energy_is_summed_over_modules():
    assert slot_energy(TWO) == pytest.approx((13 / 20, 5 / 20, 1 / 20, 1 / 20))
    assert slot_energy({}) == ()


def test_modules_nobody_adapts_leave_nothing_to_cut():
    assert partition_energy(TWO, [{"other": 3}]) == {}
    assert collapse_index(TWO, [{"other": 3}]) == 0


@laws
@given(adapters(max_rank=6), st.data())
def test_shares_equal_sums_over_dense_singular_values(adapter, data):
    ranks = st.fixed_dictionaries({path: st.integers(1, 6) for path in adapter.pairs})
    small, large = sorted(data.draw(st.integers(1, 6)) for _ in range(2))
    levels = data.draw(st.lists(ranks, min_size=1, max_size=3))
    found = {path: spectrum(pair).numpy() for path, pair in adapter.pairs.items()}
    squares = {path: dense_sigma(pair) ** 2 for path, pair in adapter.pairs.items()}
    total = sum(row.sum() for row in squares.values())

    def share(start, stop):
        return sum(row[start:stop].sum() for row in squares.values()) / total

    expected = {f"1-{small}": share(0, small)} | (
        {f"{small + 1}-{large}": share(small, large)} if large > small else {}
    )
    cut = partition_energy(found, [dict.fromkeys(found, large), dict.fromkeys(found, small)])
    assert {name: cut[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    tails = sum(row[min(level[path] for level in levels) :].sum() for path, row in squares.items())
    assert collapse_index(found, levels) == pytest.approx(tails / total, abs=1e-12)
    assert sum(partition_energy(found, levels).values()) == pytest.approx(1)
    assert slot_energy(found) == pytest.approx([share(j, j + 1) for j in range(len(slot_energy(found)))], abs=1e-12)


@laws
@given(sigmas, st.lists(st.integers(1, 8), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_order_and_repetition_of_levels_are_irrelevant(sigma, ranks, random):
    levels = [{"m": rank} for rank in [*ranks, *ranks[:2]]]
    shuffled = random.sample(levels, len(levels))
    once = [{"m": rank} for rank in sorted(set(ranks))]
    found = spectra(m=sigma)
    assert partition_energy(found, shuffled) == partition_energy(found, once)
    assert collapse_index(found, shuffled) == collapse_index(found, once)


@laws
@given(sigmas, st.integers(1, 4))
def test_collapse_index_is_zero_when_the_smallest_rank_holds_everything(sigma, more):
    found = spectra(m=[*sigma, *[0.0] * more])
    levels = [{"m": len(sigma)}, {"m": len(sigma) + more}]
    assert collapse_index(found, levels) == 0
    assert partition_energy(found, levels)[f"1-{len(sigma)}"] == 1


def test_effective_rank_is_the_worked_one():
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert effective_rank([2, 1]) == pytest.approx(math.exp(entropy))
    assert effective_rank([2, 1]) == pytest.approx(1.6493849)
    assert effective_rank([5, 0, 0]) == 1
    assert effective_rank([1e-200, 1e-200]) == pytest.approx(2)
    assert effective_rank([0, 0]) == effective_rank([]) == 0


@laws
@given(sigmas, st.floats(1e-6, 1e6))
def test_effective_rank_lies_between_one_and_that_of_the_values_themselves(sigma, factor):
    ours = effective_rank(sigma)
    p = [value / sum(sigma) for value in sigma]
    theirs = math.exp(-sum(share * math.log(share) for share in p))
    assert 1 - 1e-12 <= ours <= theirs + 1e-9 <= len(sigma) + 1e-8
    assert effective_rank([factor * value for value in sigma]) == pytest.approx(ours)


@given(st.integers(1, 40))
def test_effective_rank_of_equal_values_is_their_number(count):
    assert effective_rank([0.3] * count) == pytest.approx(count)
