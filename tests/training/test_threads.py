"""The number of CPU threads is lent for a training and given back, whatever happens in it."""

import threading

import pytest
import torch

from tasks.training.spec import keep_to_threads, limited_threads


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


def test_a_thread_that_trains_keeps_to_the_number_too():
    seen = []

    def work():
        keep_to_threads(1)
        seen.append(torch.__config__.parallel_info())

    with limited_threads(1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)
    assert "omp_get_max_threads() : 1" in seen[0]
