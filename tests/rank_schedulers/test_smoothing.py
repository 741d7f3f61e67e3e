"""Smoothing of capabilities: an average over rounds that ignores what was not measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.rank_schedulers import smoothed
from tasks.rounds.capabilities import Capability
from tests.rank_schedulers.cases import capabilities

FIELDS = Capability.__struct_fields__


def test_fields_are_blended_by_the_kept_share():
    old, new = Capability(flops_per_s=100.0, num_examples=8.0), Capability(flops_per_s=20.0, num_examples=8.0)
    assert smoothed(old, new, 0.75) == Capability(flops_per_s=80.0, num_examples=8.0)


def test_what_one_did_not_measure_comes_from_the_other():
    old, new = Capability(memory_bytes=7.0), Capability(uplink_bytes_per_s=5.0)
    assert smoothed(old, new, 0.9) == Capability(memory_bytes=7.0, uplink_bytes_per_s=5.0)


def test_repeated_measurements_forget_the_first_geometrically():
    known = Capability(flops_per_s=1024.0)
    for _ in range(3):
        known = smoothed(known, Capability(flops_per_s=1.0), 0.5)
    assert known.flops_per_s == 1.0 + 1023.0 / 8


def test_a_tiny_measurement_is_not_lost_beside_an_enormous_one():
    old, new = Capability(flops_per_s=1e-300), Capability(flops_per_s=1e30)
    assert smoothed(old, new, 1.0) == old


@given(capabilities(), capabilities(), st.floats(0.0, 1.0))
def test_every_field_lies_between_old_and_new(old, new, kept):
    blend = smoothed(old, new, kept)
    for field in FIELDS:
        low, high = sorted((getattr(old, field), getattr(new, field)))
        assert (low or high) <= getattr(blend, field) <= high


@given(capabilities(), st.floats(0.0, 1.0))
def test_nothing_known_nothing_kept_and_nothing_new_leave_what_was_measured(measured, kept):
    assert smoothed(None, measured, kept) == measured
    assert smoothed(measured, measured, kept) == measured
    assert smoothed(measured, Capability(), kept) == measured
    assert smoothed(Capability(), measured, kept) == measured


@given(capabilities(), capabilities())
def test_keeping_nothing_takes_every_new_measurement_as_it_is(old, new):
    blend = smoothed(old, new, 0.0)
    assert all(getattr(blend, field) == (getattr(new, field) or getattr(old, field)) for field in FIELDS)


@pytest.mark.parametrize("kept", [-0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(kept):
    with pytest.raises(ConfigError, match="kept share"):
        smoothed(Capability(), Capability(), kept)
