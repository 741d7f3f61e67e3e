"""Every robust rule keeps every law, on cohorts of any layer kind, rank and dtype."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.table import ROBUST_RULES
from tests.aggregators.cases import tensors
from tests.aggregators.robust.cases import FEWEST, blown_up, gap, mean, neighbours, outcome, point, regauged
from tests.strategies import adapters, cohorts

RULES = sorted(ROBUST_RULES)
Cohort = tuple[list[LoraAdapter], list[float]]
WIDE = cohorts(min_clients=FEWEST, max_clients=6, dtypes=(torch.float64,))
ANY = cohorts(min_clients=FEWEST, max_clients=6)
SETTINGS = settings(derandomize=True, max_examples=8)


@pytest.mark.parametrize("name", RULES)
@SETTINGS
@given(cohort=WIDE, seed=st.integers(0, 2**20))
def test_gauge_changes_no_decision_and_the_result_by_rounding(name: str, cohort: Cohort, seed: int):
    updates, weights = cohort
    screen = ROBUST_RULES[name].start()
    plain, mixed = (screen(u, weights) for u in (updates, [regauged(u, seed + k) for k, u in enumerate(updates)]))
    assert mixed.notes == plain.notes
    np.testing.assert_allclose(mixed.weights, plain.weights, rtol=1e-6)
    for ours, theirs in zip(plain.updates, mixed.updates, strict=True):
        assert gap(point(ours), point(theirs)) < 1e-9


@pytest.mark.parametrize("name", RULES)
@SETTINGS
@given(cohort=ANY, data=st.data())
def test_order_of_clients_is_irrelevant_and_notes_follow_them(name: str, cohort: Cohort, data: st.DataObject):
    updates, weights = cohort
    order = data.draw(st.permutations(range(len(updates))))
    screen = ROBUST_RULES[name].start()
    straight, shuffled = screen(updates, weights), screen([updates[k] for k in order], [weights[k] for k in order])
    assert gap(outcome(straight), outcome(shuffled)) < 1e-6
    assert {order[k]: note for k, note in shuffled.notes.items()} == dict(straight.notes)


@pytest.mark.parametrize("name", RULES)
@SETTINGS
@given(update=adapters(), weights=st.lists(st.floats(0.5, 500.0), min_size=FEWEST, max_size=8))
def test_clients_that_agree_get_what_they_agree_on(name: str, update: LoraAdapter, weights: list[float]):
    screened = ROBUST_RULES[name].start()([update] * len(weights), weights)
    for one in screened.updates:
        assert gap(point(one), point(update)) < 1e-5


@pytest.mark.parametrize("name", RULES)
@SETTINGS
@given(cohort=ANY)
def test_inputs_are_untouched_and_weights_can_be_averaged_with(name: str, cohort: Cohort):
    updates, weights = cohort
    before, lent = [{n: t.clone() for n, t in tensors(u).items()} for u in updates], list(weights)
    screened = ROBUST_RULES[name].start()(updates, weights)
    assert weights == lent
    assert len(screened.updates) == len(screened.weights) > 0
    assert all(np.isfinite(w) and w > 0 for w in screened.weights)
    for update, copies in zip(updates, before, strict=True):
        assert all(torch.equal(t, copies[n]) for n, t in tensors(update).items())


@pytest.mark.parametrize("name", RULES)
@SETTINGS
@given(cohort=ANY)
def test_layers_forms_and_dtypes_are_kept(name: str, cohort: Cohort):
    updates, weights = cohort
    for one in ROBUST_RULES[name].start()(updates, weights).updates:
        assert one.pairs.keys() == updates[0].pairs.keys()
        for path, pair in updates[0].pairs.items():
            ours = one.pairs[path]
            assert (ours.form, ours.a.dtype, ours.b.dtype) == (pair.form, pair.a.dtype, pair.b.dtype)
        assert {n: (t.dtype, t.shape) for n, t in one.dense.items()} == {
            n: (t.dtype, t.shape) for n, t in updates[0].dense.items()
        }


@pytest.mark.parametrize("name", [n for n in RULES if ROBUST_RULES[n].keeps_factors])
@SETTINGS
@given(cohort=ANY)
def test_rules_that_keep_factors_do(name: str, cohort: Cohort):
    updates, weights = cohort
    for one in ROBUST_RULES[name].start()(updates, weights).updates:
        assert any(
            all(torch.equal(one.pairs[p].a, q.a) and torch.equal(one.pairs[p].b, q.b) for p, q in u.pairs.items())
            for u in updates
        )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1e6, -1e6, 1e18])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_one_client_blown_up_moves_the_outcome_less_than_the_honest_spread_allows(name: str, size: float, place: int):
    updates, weights = neighbours(7), [1.0] * 7
    attacked = [blown_up(u, size) if k == place else u for k, u in enumerate(updates)]
    honest = [point(u) for k, u in enumerate(updates) if k != place]
    centre = mean(honest, [1.0] * 6)
    radius = max(float(np.linalg.norm(p - centre)) for p in honest)
    moved = float(np.linalg.norm(outcome(ROBUST_RULES[name].start()(attacked, weights)) - centre))
    # Clipping bounds a norm, not a direction: the attacker keeps a seventh of twice the median norm, and its head a
    # seventh of twice the median distance. The others stay within a few radii of the honest clients.
    bound = 3 / 7 * np.linalg.norm(centre) + radius if name == "norm_clip" else 3 * radius
    assert moved < bound
    assert float(np.linalg.norm(mean([point(u) for u in attacked], weights) - centre)) > 1000 * bound
