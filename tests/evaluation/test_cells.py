"""Figures over seeds: the formulas worked by hand, which way a metric is better, and what no seed has."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.cells import (
    CellResult,
    RoundPoint,
    Spread,
    leaders,
    mean_curve,
    round_points,
    rounds_to_target,
    spread,
    standing,
)
from tasks.rounds.records import decode, encode

DIGEST = "a" * 64


def points(*qualities, up=10, down=20):
    return tuple(
        RoundPoint(round_index=i, quality=quality, uplink_bytes=up * i, downlink_bytes=down * i)
        for i, quality in enumerate(qualities, start=1)
    )


def cell(seed, *qualities, metric="accuracy", method="rbla", **sizes):
    return CellResult(
        setting="up",
        method=method,
        seed=seed,
        config_sha256=DIGEST,
        metric=metric,
        outcome="finished",
        points=points(*qualities, **sizes),
    )


def failure(seed):
    return CellResult(
        setting="up",
        method="rbla",
        seed=seed,
        config_sha256=DIGEST,
        metric="accuracy",
        outcome="failed",
        reason="it diverged",
    )


def test_spread_is_mean_and_sample_standard_deviation():
    # deviations -2, 0, 2 from 4: variance (4 + 0 + 4) / (3 - 1) = 4
    assert spread([2.0, 4.0, 6.0]) == Spread(4.0, 2.0, 3)
    assert spread([0.5]) == Spread(0.5, None, 1)
    assert spread([None, 1.0, 3.0]) == Spread(2.0, math.sqrt(2.0), 2)
    assert spread([None]) is spread([]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_spread_agrees_with_the_formula(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    found = spread(values)
    assert found.mean == pytest.approx(mean, rel=1e-9, abs=1e-9)
    assert found.sd == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "target", "qualities", "reached"),
    [
        ("accuracy", 0.5, (0.1, 0.5, 0.4, 0.6), 2),
        ("accuracy", 0.7, (0.1, 0.5, 0.4, 0.6), None),
        ("accuracy", 0.5, (None, 0.6), 2),
        ("loss", 0.5, (0.9, 0.6, 0.4, 0.7), 3),
        ("loss", 0.0, (0.9,), None),
        ("accuracy", 0.0, (0.9,), None),
    ],
)
def test_rounds_to_target_is_the_first_round_that_is_good_enough(metric, target, qualities, reached):
    assert rounds_to_target(points(*qualities), metric, target) == reached


def test_standing_sums_up_a_method_over_its_seeds():
    s = standing([cell(0, 0.2, 0.8, 0.6), cell(1, 0.3, 0.4, 0.5, up=12), failure(2)], target=0.7)
    assert s.quality == Spread(pytest.approx(0.55), pytest.approx(math.sqrt(0.005)), 2)
    assert s.best == Spread(pytest.approx(0.65), pytest.approx(math.sqrt(0.045)), 2)
    assert s.best_round == Spread(2.5, pytest.approx(math.sqrt(0.5)), 2)
    assert s.rounds_to_target == Spread(2.0, None, 1), "only seed 0 reached it"
    assert (s.uplink_bytes.mean, s.downlink_bytes.mean) == (33.0, 60.0)
    assert (s.finished, s.failed) == ((0, 1), {2: "it diverged"})


def test_a_last_round_without_a_finite_figure_counts_as_none():
    s = standing([cell(0, 2.0, None, metric="perplexity"), cell(1, 3.0, 2.5, metric="perplexity")], target=0.0)
    assert s.quality == Spread(2.5, None, 1)
    assert s.best.mean == pytest.approx(2.25), "less is better"


def test_a_run_whose_every_round_failed_has_finished_without_figures_and_hides_nobody_elses():
    empty, good = cell(0), cell(1, 0.4, 0.5)
    s = standing([empty, good], target=0.0)
    assert (s.finished, s.failed, s.quality) == ((0, 1), {}, Spread(0.5, None, 1))
    assert mean_curve([empty, good]) == mean_curve([good])


def test_standing_of_nothing_has_no_figures():
    s = standing([], target=0.5)
    assert s.quality is s.best is s.rounds_to_target is s.uplink_bytes is None
    assert (s.finished, s.failed) == ((), {})


@given(st.permutations([cell(0, 0.1, 0.9), cell(1, 0.2, 0.7), cell(2, 0.3, 0.31), failure(3)]))
def test_the_order_of_results_is_irrelevant(results):
    assert standing(results, target=0.5) == standing(sorted(results, key=lambda r: r.seed), target=0.5)


def test_mean_curve_averages_bytes_and_quality_round_by_round():
    curve = mean_curve([cell(0, 0.2, 0.8), cell(1, 0.4, 0.6, up=20, down=30)])
    assert curve.moved_bytes == (40, 80)
    assert curve.values == pytest.approx((0.3, 0.7))


def test_mean_curve_leaves_out_rounds_that_a_seed_lacks_and_seeds_that_failed():
    curve = mean_curve([cell(0, 0.2, None, 0.6), cell(1, 0.4, 0.5, 0.8, 0.9), failure(2)])
    assert curve.moved_bytes == (30, 90)
    assert curve.values == pytest.approx((0.3, 0.7))
    assert mean_curve([failure(0)]).values == ()


def leading(metric, **qualities):
    standings = {
        m: standing([cell(i, q, metric=metric) for i, q in enumerate(v)], target=0) for m, v in qualities.items()
    }
    return leaders(standings, metric, num_seeds=2)


def test_leaders_have_the_best_mean_whichever_way_is_better():
    assert leading("accuracy", a=(0.5, 0.7), b=(0.6, 0.8)) == {"b"}
    assert leading("loss", a=(0.5, 0.7), b=(0.6, 0.8)) == {"a"}
    assert leading("accuracy", a=(0.1, 0.3), b=(0.2, 0.2)) == {"a", "b"}, "equal as far as it is shown"


def test_a_method_that_lost_a_seed_does_not_lead():
    assert leading("accuracy", a=(0.5, 0.7), b=(0.9,)) == {"a"}
    assert leading("accuracy", b=(0.9,)) == set()


def record(index, outcome, **metrics):
    totals = {"uplink_bytes": index, "downlink_bytes": 2 * index}
    return SimpleNamespace(round_index=index, outcome=outcome, metrics=metrics, totals=totals)


def test_points_are_the_rounds_that_made_a_new_adapter():
    records = [record(0, "initial"), record(1, "committed", accuracy=0.5), record(2, "failed"), record(3, "degraded")]
    found = round_points(records, "accuracy")
    assert [(p.round_index, p.quality, p.uplink_bytes, p.downlink_bytes) for p in found] == [
        (1, 0.5, 1, 2),
        (3, None, 3, 6),
    ]


def test_a_result_survives_being_written():
    result = cell(3, 0.1, None, 0.7)
    assert decode(CellResult, encode(result), "cell") == result
