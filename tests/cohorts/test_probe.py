"""From measurements to what a machine can do: the operation count of frozen-base training, written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.cohorts.probe import Measured, capability_of
from tasks.rounds.capabilities import Capability


def test_worked_figures():
    measured = Measured(
        num_examples=50,
        num_items=100,
        base_values=1000,
        trained_values=10,
        training_s=2.0,
        free_bytes=5000,
        peak_bytes=400,
        download_bytes=60,
        download_s=0.5,
        upload_bytes=40,
        upload_s=0.25,
    )
    assert capability_of(measured) == Capability(
        flops_per_s=(4 * 1000 * 100 + 6 * 10 * 100) / 2.0,
        work_flops=4 * 1000 * 100,
        memory_bytes=5000,
        activation_bytes=400 - 16 * 10,
        uplink_bytes_per_s=160.0,
        downlink_bytes_per_s=120.0,
        num_examples=50,
    )


def test_what_was_not_measured_is_zero():
    found = capability_of(Measured(num_examples=1, num_items=1, base_values=1, trained_values=1, training_s=0.0))
    assert found == Capability(work_flops=4.0, num_examples=1.0)


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 10**7), st.floats(1e-3, 1e4))
def test_the_time_it_took_comes_back_from_its_own_figures(items, base, trained, seconds):
    found = capability_of(Measured(1, items, base, trained, training_s=seconds))
    again = found.work_flops * (1 + 6 * trained / (4 * base)) / found.flops_per_s
    assert again == pytest.approx(seconds)
