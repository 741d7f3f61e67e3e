"""Annealing: the worked tables of the three curves, where they start, end and cross, and what snapping allows."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rank_schedulers import Annealing, RankCosts, annealed_rank, rank_scheduler
from tasks.rank_schedulers.sa_annealing import CURVES, whole_rounds
from tests.rank_schedulers.cases import ranks_under, signals_of

TABLE = {
    "cubic": [32, 24, 18, 14, 10, 8, 6, 5, 4, 4, 4],
    "linear": [32, 29, 26, 24, 21, 18, 15, 12, 10, 7, 4],
    "cosine": [32, 31, 29, 26, 22, 18, 14, 10, 7, 5, 4],
}
COST = {"cubic": 0.391, "linear": 0.606, "cosine": 0.606}
CURVE = pytest.mark.parametrize("curve", CURVES)


@st.composite
def annealings(draw):
    return Annealing(
        curve=draw(st.sampled_from(sorted(CURVES))),
        heating_rank=draw(st.integers(1, 64)),
        floor_rank=draw(st.integers(1, 64)),
        initiating_rounds=draw(st.integers(0, 30)),
        cooling_rounds=draw(st.integers(0, 30)),
        snap=draw(st.booleans()),
    )


def test_curves_give_the_worked_table():
    found = {curve: [annealed_rank(Annealing(curve, 32, 4), t, 10) for t in range(11)] for curve in CURVES}
    assert found == TABLE


@CURVE
def test_curves_cost_what_the_worked_sums_say(curve):
    cost = sum(annealed_rank(Annealing(curve, 32, 4), t, 10) for t in range(10)) / (10 * 32)
    assert round(cost, 3) == COST[curve]


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 40), st.data())
def test_linear_and_cubic_ranks_are_the_formulas_rounded_half_up(floor, above, num_rounds, data):
    t = data.draw(st.integers(0, num_rounds))
    top = floor + above
    linear = top + (floor - top) * Fraction(t, num_rounds)
    cubic = floor + above * Fraction(num_rounds - t, num_rounds) ** 3
    for curve, exact in (("linear", linear), ("cubic", cubic)):
        assert annealed_rank(Annealing(curve, top, floor), t, num_rounds) == int(exact + Fraction(1, 2))


@given(st.integers(1, 64), st.integers(0, 64), st.integers(1, 20))
def test_linear_and_cosine_cross_half_way(floor, above, half):
    middle = {annealed_rank(Annealing(curve, floor + above, floor), half, 2 * half) for curve in ("linear", "cosine")}
    assert middle == {floor + (above + 1) // 2}


@given(annealings(), st.integers(1, 50))
def test_ranks_start_hot_never_rise_and_end_at_the_floor(annealing, num_rounds):
    ranks = [annealed_rank(annealing, t, num_rounds) for t in range(num_rounds + 1)]
    floor = min(annealing.floor_rank, annealing.heating_rank)
    start, cooling = annealing.initiating_rounds, annealing.cooling_rounds
    assert set(ranks[: start + 1]) == {annealing.heating_rank}
    assert ranks == sorted(ranks, reverse=True)
    assert min(ranks) >= floor
    assert set(ranks[max(num_rounds - cooling, start + 1) :]) <= {floor}
    if start < num_rounds:
        assert ranks[-1] == floor


@CURVE
@given(st.integers(1, 64), st.integers(0, 50), st.integers(1, 50))
def test_equal_ranks_at_both_ends_stay(curve, rank, rounds_done, num_rounds):
    assert annealed_rank(Annealing(curve, rank, rank), rounds_done, num_rounds) == rank


@CURVE
@pytest.mark.parametrize(("initiating", "num_rounds"), [(0, 1), (5, 5), (9, 5)])
def test_a_run_without_room_for_a_curve_keeps_the_heating_rank(curve, initiating, num_rounds):
    annealing = Annealing(curve, 32, 4, initiating, cooling_rounds=1)
    assert {annealed_rank(annealing, t, num_rounds) for t in range(num_rounds)} == {32}


@given(annealings(), st.integers(0, 50), st.integers(1, 50))
def test_snapped_ranks_are_the_next_halving_at_or_above_the_exact_one(annealing, rounds_done, num_rounds):
    heating, floor = annealing.heating_rank, min(annealing.floor_rank, annealing.heating_rank)
    allowed = {floor, *(heating // 2**k for k in range(7) if heating // 2**k >= floor)}
    rank = annealed_rank(replace(annealing, snap=False), rounds_done, num_rounds)
    snapped = annealed_rank(replace(annealing, snap=True), rounds_done, num_rounds)
    assert snapped == min(r for r in allowed if r >= rank)


def test_snapping_keeps_to_few_ranks():
    snapped = [annealed_rank(Annealing("cubic", 32, 4, snap=True), t, 10) for t in range(11)]
    assert snapped == [32, 32, 32, 16, 16, 8, 8, 8, 4, 4, 4]


def test_scheduler_bounds_all_clients_by_the_rank_of_the_next_round():
    row = rank_scheduler("sa_annealing")
    values = {"curve": "linear", "cooling_rounds": 0}
    ceilings = {"c0": 32, "c1": 20, "c2": 2}
    ranks = ranks_under(row, signals_of(ceilings, rounds_done=3), values)
    assert ranks == {"c0": 24, "c1": 20, "c2": 2}
    bound = row.bounds(signals_of(ceilings, rounds_done=3), values)["c0"]
    assert bound.reason == "linear curve from 32 to 4, 3 of 10 rounds trained"


def test_heating_rank_is_the_runs_largest_unless_a_smaller_one_is_set():
    row = rank_scheduler("sa_annealing")
    signals = [signals_of({"c0": 32}, rounds_done=t) for t in range(10)]
    ranks = {heating: [ranks_under(row, s, {"heating_rank": heating})["c0"] for s in signals] for heating in (0, 8, 64)}
    assert [ranks[heating][0] for heating in (0, 8, 64)] == [32, 8, 32]
    assert ranks[64] == ranks[0]


def test_last_round_trains_at_the_floor_by_default():
    row = rank_scheduler("sa_annealing")
    ranks = [ranks_under(row, signals_of({"c0": 32}, rounds_done=t), {})["c0"] for t in range(10)]
    assert (ranks[0], ranks[-1]) == (32, 4)


def test_initiating_rank_holds_in_the_initiating_rounds_as_far_as_an_update_is_small_enough():
    row = rank_scheduler("sa_annealing")
    costs = RankCosts(values=lambda rank: 1000 * rank, base_values=10**6, uplink_bytes=4.0)
    options = {"initiating_rounds": 2, "initiating_rank": 64, "heating_rank": 16, "floor_rank": 4, "cooling_rounds": 0}

    signals = replace(signals_of({"c0": 64}), num_rounds=4, max_rank=64, costs=costs)

    def ranks(**more):
        return [row.bounds(replace(signals, rounds_done=done), options | more)["c0"] for done in range(5)]

    assert [bound.rank for bound in ranks(curve="linear")] == [64, 64, 16, 10, 4]
    assert ranks()[0].reason == "initiating stage at rank 64, 0.256 MB an update"
    assert [bound.rank for bound in ranks(initiating_megabytes=0.256)][:2] == [64, 64]
    capped = ranks(initiating_megabytes=0.255)
    assert [bound.rank for bound in capped][:3] == [16, 16, 16]
    assert capped[0].reason == "initiating stage: an update of rank 64 takes 0.256 MB, above 0.255 MB"
    assert [bound.rank for bound in ranks(initiating_rank=8)][:3] == [16, 16, 16], "never below the heating rank"
    assert [bound.rank for bound in ranks(initiating_rank=1000)][:2] == [64, 64], "never above the run's largest"


def test_whole_model_trains_in_the_initiating_rounds_as_far_as_an_update_is_small_enough():
    row = rank_scheduler("sa_annealing")
    costs = RankCosts(values=lambda rank: 1000 * rank, base_values=250_000, uplink_bytes=2.0)
    signals = replace(signals_of({"c0": 64}), num_rounds=4, max_rank=64, costs=costs)
    options = {"initiating": "full", "initiating_rounds": 2, "heating_rank": 16, "initiating_rank": 64}
    first, capped = (row.bounds(signals, options | {"initiating_megabytes": most})["c0"] for most in (1.0, 0.99))
    assert (first.rank, first.reason) == (16, "initiating stage on the whole model, 1 MB an update; then rank 16")
    assert capped.rank == 16
    assert capped.reason == "initiating stage: the whole model takes 1 MB, above 0.99 MB; LoRA instead"
    later = row.bounds(replace(signals, rounds_done=2), options)["c0"]
    assert later.reason.startswith("cubic curve from 16")


@pytest.mark.parametrize(("initiating", "most", "rounds"), [("full", 1.0, 3), ("full", 0.99, 0), ("lora", 1.0, 0)])
def test_rounds_on_the_whole_model_are_the_initiating_ones_or_none(initiating, most, rounds):
    options = {"initiating": initiating, "initiating_rounds": 3, "initiating_megabytes": most, "curve": "cubic"}
    assert whole_rounds(250_000, **options) == rounds
