"""Distances and inner products of whole updates agree with dense vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust import geometry
from tasks.aggregators.robust.geometry import canonical, inner_products, squared_distances
from tests.aggregators.robust.cases import neighbours, point, regauged, sheared
from tests.oracles.robust import canonical as oracle
from tests.strategies import cohorts


@settings(derandomize=True, max_examples=15)
@given(cohort=cohorts(max_clients=5))
def test_distances_and_inner_products_are_those_of_dense_vectors(cohort: tuple[list[LoraAdapter], list[float]]):
    points = np.array([point(u) for u in cohort[0]])
    inners, squares = inner_products(cohort[0]), squared_distances(cohort[0])
    scale = float(np.square(points).sum(axis=1).max())
    np.testing.assert_allclose(inners, points @ points.T, rtol=1e-9, atol=1e-12 * scale)
    expected = np.square(points[:, None] - points[None, :]).sum(axis=2)
    np.testing.assert_allclose(squares, expected, rtol=1e-9, atol=1e-12 * scale)
    assert (squares == squares.T).all()
    assert not np.diag(squares).any()


def test_parts_that_one_side_lacks_count_whole():
    whole = neighbours(1)[0]
    bare = LoraAdapter({}, {"steps": torch.tensor(9)})
    assert squared_distances([whole, bare])[0, 1] == np.float64(squared_distances([bare, whole])[0, 1])
    np.testing.assert_allclose(squared_distances([whole, bare])[0, 1], np.square(point(whole)).sum())
    assert inner_products([whole, bare])[0, 1] == 0.0


def test_equal_updates_in_other_gauges_are_at_rounding_level():
    update = LoraAdapter({p: type(q)(q.a.double(), q.b.double(), q.scaling) for p, q in neighbours(1)[0].pairs.items()})
    assert squared_distances([update, regauged(update, 3)])[0, 1] < 1e-24 * np.square(point(update)).sum()


def test_close_updates_are_told_apart_although_their_inner_products_cancel():
    """At the sixth digit of a factor, squares of distances are at the last digits of inner products."""
    first = neighbours(1, dtype=torch.float64)[0]
    near = [neighbours(1, dtype=torch.float64, spread=0.05 * (1 + step))[0] for step in (1e-6, -3e-7, 1e-2)]
    points = np.array([point(u) for u in [first, *near]])
    expected = np.square(points[:, None] - points[None, :]).sum(axis=2)
    np.testing.assert_allclose(squared_distances([first, *near]), expected, rtol=1e-6)


def test_only_close_pairs_cost_a_factorisation(monkeypatch: pytest.MonkeyPatch):
    asked = []
    exact = geometry.adapter_distance
    monkeypatch.setattr(geometry, "adapter_distance", lambda x, y: asked.append((x, y)) or exact(x, y))
    apart = neighbours(4)
    squared_distances(apart)
    assert not asked
    squared_distances([*apart, apart[2]])
    assert asked == [(apart[2], apart[2])]


def test_factors_that_cancel_do_not_drown_inner_products():
    updates = neighbours(3, dtype=torch.float64)
    hidden = [sheared(updates[0], 1e5), *updates[1:]]
    np.testing.assert_allclose(inner_products(hidden), inner_products(updates), rtol=1e-4)
    np.testing.assert_allclose(squared_distances(hidden), squared_distances(updates), rtol=1e-4)


def test_canonical_form_is_the_oracles():
    pair = neighbours(1)[0].pairs["m"]
    product = pair.scaling * pair.b.double() @ pair.a.double()
    a, b = oracle(product.numpy(), pair.rank)
    ours = canonical(pair)
    np.testing.assert_allclose(ours.a.numpy(), a, atol=1e-10)
    np.testing.assert_allclose(ours.b.numpy(), b, atol=1e-10)
