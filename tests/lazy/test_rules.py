"""Lazy rules: the published inequalities, and what decides before them."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.errors import ConfigError, NonFiniteUpdateError, UnknownNameError
from tasks.lazy import rules
from tasks.lazy.rules import LazyLook, Verdict
from tasks.lazy.table import LAZY_RULES, lazy_rule
from tests.oracles.lazy import aquila_skips, laq_sends

SQUARES = st.floats(0.001, 1e6)
MOVED = st.lists(SQUARES, min_size=1, max_size=14).map(tuple)
LOOK = LazyLook(
    innovation_sq=1.0, error_sq=0.0, last_error_sq=0.0, moved_sq=(1.0,) * 10, num_clients=10, skips=0, has_held=True
)
SKIPPING = [name for name, row in LAZY_RULES.items() if row.may_skip]


def decide(name: str, look: LazyLook, **values) -> Verdict:
    return lazy_rule(name).rule(values)(look)


@given(SQUARES, st.tuples(SQUARES, SQUARES), MOVED, st.integers(1, 50), st.floats(0.01, 1.0))
def test_laq_is_the_published_inequality_on_what_the_server_adds(innovation, errors, moved, clients, share):
    look = LazyLook(innovation, errors[0] / 1e3, errors[1] / 1e3, moved, clients, 0, has_held=True, share=share)
    verdict = decide("laq", look)
    assume(abs(verdict.left - verdict.right) > 1e-9 * verdict.right)
    sends = laq_sends(innovation, (errors[0] / 1e3, errors[1] / 1e3), moved, clients, share)
    assert verdict.skip == (not sends)
    assert verdict.reason == (rules.LARGE if sends else rules.SMALL)


@given(SQUARES, SQUARES, MOVED, st.floats(0.0, 4.0))
def test_aquila_is_the_recalled_inequality_on_the_last_round_alone(innovation, error, moved, beta):
    look = replace(LOOK, innovation_sq=innovation, error_sq=error, moved_sq=moved)
    assert decide("aquila", look, aquila_beta=beta).skip == aquila_skips(innovation, error, moved[0], beta)


def test_laq_gives_the_worked_numbers():
    # A server that adds: 0.8 / 100 = 0.008 of movement, and 3 * (0.001 + 0.002) of errors.
    added = replace(LOOK, error_sq=0.001, last_error_sq=0.002, share=1.0)
    assert decide("laq", added).right == pytest.approx(0.017)
    assert not decide("laq", replace(added, innovation_sq=0.018)).skip
    assert decide("laq", replace(added, innovation_sq=0.016)).skip
    # A mean of ten moves a tenth as far for the same deltas, so the same movement asks for a hundred times as much.
    assert decide("laq", replace(added, share=None)).right == pytest.approx(0.809)
    # Two of ten rounds so far: the others count as still.
    assert decide("laq", replace(LOOK, moved_sq=(5.0, 5.0), share=1.0)).right == pytest.approx(0.008)


def test_an_innovation_that_meets_its_bound_is_sent_by_laq_and_skipped_by_aquila():
    met = replace(LOOK, moved_sq=(0.5,), share=1.0, num_clients=1)
    assert not decide("laq", met, laq_memory=1, laq_xi=2.0).skip
    assert decide("aquila", met, aquila_beta=2.0).skip


def test_in_a_mean_the_size_of_the_cohort_does_not_matter():
    looks = [replace(LOOK, innovation_sq=0.5, num_clients=clients) for clients in (1, 2, 64)]
    assert len({decide("laq", look) for look in looks}) == 1


@given(SQUARES, SQUARES, MOVED, st.sampled_from((2.0**-20, 0.25, 2.0**20)), st.sampled_from(SKIPPING))
def test_the_scale_of_all_deltas_does_not_matter(innovation, error, moved, scale, name):
    look = replace(LOOK, innovation_sq=innovation, error_sq=error, last_error_sq=error, moved_sq=moved)
    scaled = replace(
        look,
        innovation_sq=innovation * scale,
        error_sq=error * scale,
        last_error_sq=error * scale,
        moved_sq=tuple(m * scale for m in moved),
    )
    assert decide(name, look).skip == decide(name, scaled).skip


@pytest.mark.parametrize("name", SKIPPING)
def test_the_first_upload_is_never_skipped_even_where_it_says_nothing(name):
    for look in (replace(LOOK, innovation_sq=1e-9), replace(LOOK, innovation_sq=0.0)):
        verdict = decide(name, replace(look, has_held=False, skips=50))
        assert (verdict.skip, verdict.reason) == (False, rules.FIRST)


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("skips", [0, 10, 1000])
@pytest.mark.parametrize("moved_sq", [(), (0.0, 0.0), (1.0,)])
def test_nothing_new_is_skipped_however_long(name, skips, moved_sq):
    verdict = decide(name, replace(LOOK, innovation_sq=0.0, skips=skips, moved_sq=moved_sq))
    assert (verdict.skip, verdict.reason) == (True, rules.NOTHING_NEW)


@pytest.mark.parametrize("name", SKIPPING)
def test_after_the_longest_row_of_skips_a_client_sends(name):
    small = replace(LOOK, innovation_sq=1e-9)
    assert decide(name, replace(small, skips=9)).skip
    assert decide(name, replace(small, skips=10)).reason == rules.TOO_LONG
    assert not decide(name, replace(small, skips=3), max_skips=3).skip
    assert not decide(name, small, max_skips=0).skip


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("moved_sq", [(), (0.0, 0.0)])
def test_while_nothing_has_moved_clients_send(name, moved_sq):
    look = replace(LOOK, innovation_sq=1e-9, error_sq=1e-9, moved_sq=moved_sq)
    assert (decide(name, look).skip, decide(name, look).reason) == (False, rules.NOTHING_MOVED)


def test_off_never_skips():
    for look in (LOOK, replace(LOOK, innovation_sq=0.0), replace(LOOK, innovation_sq=1e-9)):
        assert not decide("never", look).skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["innovation_sq", "error_sq", "last_error_sq", "moved_sq"])
def test_what_is_not_finite_is_refused(field, value):
    with pytest.raises(NonFiniteUpdateError, match="lazy upload"):
        replace(LOOK, **{field: (1.0, value) if field == "moved_sq" else value})


@pytest.mark.parametrize("values", [{"num_clients": 0}, {"share": 0.0}, {"share": 1.5}, {"share": math.nan}])
def test_a_client_that_counts_nothing_is_refused(values):
    with pytest.raises(ConfigError, match="counts"):
        replace(LOOK, **values)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UnknownNameError, match="laq"):
        lazy_rule("lag")
    with pytest.raises(UnknownNameError, match="aquila_beta"):
        decide("aquila", LOOK, laq_xi=0.8)
    with pytest.raises(ConfigError, match="max_skips"):
        decide("laq", LOOK, max_skips=-1)
