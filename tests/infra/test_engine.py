"""Retries: of what may go away by itself, so many times, never of anything else."""

import pytest

from infra.engine import RETRY_DELAYS_S, retry_transient
from tasks.errors import StoreError, StoreUnavailableError


def failing(times, error):
    calls = []

    def work():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return work, calls


def test_transient_errors_are_tried_again_after_the_stated_waits():
    waits = []
    work, _ = failing(2, StoreUnavailableError("store", "does not answer"))
    assert retry_transient(work, sleep=waits.append) == 3
    assert waits == list(RETRY_DELAYS_S[:2])


def test_retries_have_an_end():
    waits = []
    work, calls = failing(99, StoreUnavailableError("store", "does not answer"))
    with pytest.raises(StoreUnavailableError):
        retry_transient(work, sleep=waits.append)
    assert len(calls) == len(waits) + 1 == len(RETRY_DELAYS_S) + 1


def test_other_errors_are_not_tried_again():
    work, calls = failing(99, StoreError("store", "no such bucket"))
    with pytest.raises(StoreError):
        retry_transient(work, sleep=lambda _: pytest.fail("waited"))
    assert len(calls) == 1
