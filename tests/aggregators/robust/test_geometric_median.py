"""Geometric median: known points, the dense oracle, and the bound under attack."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.geometric_median import geometric_median
from tests.aggregators.robust.cases import blown_up, gap, mean, neighbours, outcome, point, row, scalar, sheared
from tests.oracles import robust as oracle
from tests.strategies import cohorts

Cohort = tuple[list[LoraAdapter], list[float]]
KITE = [row(0, 0), row(3, 0), row(4, 4), row(0, 2)]  # its diagonals cross at (1.2, 1.2)


def test_four_corners_have_the_crossing_of_their_diagonals():
    screened = geometric_median()(KITE, [1.0] * 4)
    np.testing.assert_allclose(outcome(screened), [1.2, 1.2], atol=1e-5)


def test_an_even_triangle_has_its_centre():
    corners = [row(np.cos(angle), np.sin(angle)) for angle in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)]
    screened = geometric_median()(corners, [2.0] * 3)
    np.testing.assert_allclose(screened.weights, [1 / 3] * 3, rtol=1e-6)
    assert not screened.notes


def test_more_than_half_the_weight_is_the_median():
    screened = geometric_median()(KITE, [1.0, 1.0, 4.0, 1.0])
    np.testing.assert_allclose(outcome(screened), [4.0, 4.0], atol=1e-4)
    assert sorted(screened.notes) == [0, 1, 3]


def test_equal_updates_keep_their_weights():
    updates, weights = [neighbours(1)[0]] * 4, [1.0, 2.0, 3.0, 4.0]
    screened = geometric_median()(updates, weights)
    np.testing.assert_allclose(screened.weights, np.array(weights) / 10, rtol=1e-3)
    assert gap(outcome(screened), mean([point(u) for u in updates], weights)) < 1e-9


@settings(derandomize=True, max_examples=8)
@given(cohort=cohorts(min_clients=3, max_clients=6))
def test_summed_distance_is_as_small_as_the_oracles(cohort: Cohort):
    updates, weights = cohort
    points = [point(u) for u in updates]
    ours = outcome(geometric_median(iterations=2000)(updates, weights))
    best = oracle.summed_distance(oracle.geometric_median(points, weights, 1000), points, weights)
    assert oracle.summed_distance(ours, points, weights) <= best * (1 + 1e-4)


def test_default_steps_find_the_oracles_point():
    updates = [*neighbours(6), blown_up(neighbours(7)[6], 50.0)]
    weights = [1.0, 2.0, 1.0, 3.0, 1.0, 2.0, 1.0]
    expected = oracle.geometric_median([point(u) for u in updates], weights)
    assert gap(outcome(geometric_median()(updates, weights)), expected) < 1e-5


@pytest.mark.parametrize(("num_attackers", "size"), [(1, 1e6), (2, 1e6), (2, -1e6), (3, 1e9)])
def test_attackers_move_it_by_the_stated_bound_at_most(num_attackers: int, size: float):
    updates = neighbours(7)
    attacked = [*(blown_up(u, size) for u in updates[:num_attackers]), *updates[num_attackers:]]
    honest = [point(u) for u in updates[num_attackers:]]
    centre, share = mean(honest, [1.0] * len(honest)), num_attackers / 7
    radius = max(float(np.linalg.norm(p - centre)) for p in honest)
    screened = geometric_median()(attacked, [1.0] * 7)
    assert np.linalg.norm(outcome(screened) - centre) <= 2 * (1 - share) / (1 - 2 * share) * radius
    assert sorted(screened.notes) == list(range(num_attackers))


def test_a_majority_of_zeros_wins():
    screened = geometric_median()([scalar(0.0), scalar(0.0), scalar(1e6)], [1.0] * 3)
    assert abs(float(outcome(screened)[0])) < 1e-3


def test_one_client_whose_factors_cancel_changes_nothing():
    updates = neighbours(5, dtype=torch.float64)
    expected = geometric_median()(updates, [1.0] * 5)
    screened = geometric_median()([sheared(updates[0], 1e5), *updates[1:]], [1.0] * 5)
    np.testing.assert_allclose(screened.weights, expected.weights, rtol=1e-3)
    assert screened.notes == expected.notes
