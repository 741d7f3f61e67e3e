"""Energy: how many singular values hold a share of it, over modules, and when nothing is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import NonFiniteUpdateError
from tasks.rank_schedulers import rank_scheduler
from tests.rank_schedulers.cases import ranks_under, signals_of

ROW = rank_scheduler("energy")
SPECTRA = st.lists(st.integers(0, 1000), min_size=1, max_size=12).map(lambda values: sorted(values, reverse=True))


def rank_of(spectra, **values):
    return ranks_under(ROW, signals_of({"c0": 64}, spectra=spectra), {"headroom": 0, **values})["c0"]


def needed_by_trying(spectrum, share):
    """Return the fewest leading values whose squares reach the share, by numpy's sums."""
    squares = np.asarray(spectrum, dtype=np.float64) ** 2
    return next(n for n in range(len(spectrum) + 1) if squares[:n].sum() >= share * squares.sum())


@pytest.mark.parametrize(("share", "rank"), [(0.89, 1), (0.9, 1), (0.91, 2), (0.99, 2), (1.0, 3)])
def test_the_worked_spectrum_needs_as_many_slots_as_its_squares_say(share, rank):
    # Squares 90, 9 and 1 of 100; the values themselves would hold 70 %, 93 % and all.
    assert rank_of({"m": [90**0.5, 3.0, 1.0]}, energy_share=share) == rank


@settings(max_examples=100, derandomize=True)
@given(st.dictionaries(st.sampled_from("abc"), SPECTRA, min_size=1), st.floats(0.01, 0.999))
def test_the_module_that_needs_most_decides(spectra, share):
    needed = max(needed_by_trying(spectrum, share) for spectrum in spectra.values())
    assert rank_of(spectra, energy_share=share) == (needed or 64)


def test_headroom_is_added_so_that_ranks_can_grow_again():
    signals = signals_of({"c0": 8, "c1": 3}, spectra={"m": [1.0, 1.0, 1.0, 1e-9]})
    bounds = ROW.bounds(signals, {"energy_share": 0.9, "headroom": 2})
    assert {client: bound.rank for client, bound in bounds.items()} == {"c0": 5, "c1": 5}
    assert bounds["c0"].reason == "3 singular values hold 0.9 of the energy of m, 2 to grow"


@pytest.mark.parametrize("spectra", [{}, {"m": []}, {"m": [0.0, 0.0], "n": []}])
def test_no_energy_bounds_nothing(spectra):
    assert ROW.bounds(signals_of({"c0": 8}, spectra=spectra)) == {}


def test_values_that_are_zero_are_not_counted():
    assert rank_of({"m": [2.0, 1.0, 0.0, 0.0]}, energy_share=1.0) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_spectrum_that_is_not_finite_is_an_error_that_names_its_module(bad):
    with pytest.raises(NonFiniteUpdateError, match="module n, spectrum"):
        ROW.bounds(signals_of({"c0": 8}, spectra={"m": [1.0], "n": [1.0, bad]}))


@settings(max_examples=60, derandomize=True)
@given(SPECTRA, st.sampled_from((2.0**-600, 0.5, 2.0**600)), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_scale_is_irrelevant_and_a_larger_share_never_needs_less(spectrum, scale, one, other):
    low, high = (rank_of({"m": spectrum}, energy_share=share) for share in sorted((one, other)))
    assert low <= high
    assert rank_of({"m": [scale * value for value in spectrum]}, energy_share=one) == (low if one <= other else high)


def test_only_the_spectra_count():
    signals = signals_of({"c0": 8}, spectra={"m": [3.0, 1.0]})
    other = replace(signals, rounds_done=9, spent_bytes=10**9, cohort_size=7, num_rounds=100)
    assert ROW.bounds(other) == ROW.bounds(signals)
