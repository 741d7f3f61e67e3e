"""The number of CPU threads is lent for a training and given back, whatever happens in it."""

import pytest
import torch

from tasks.training.spec import limited_threads


def test_threads_are_limited_inside_and_restored_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def fail():
        with limited_threads(1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_zero_leaves_threads_as_they_are():
    before = torch.get_num_threads()
    with limited_threads(0):
        assert torch.get_num_threads() == before
