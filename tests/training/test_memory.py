"""Memory: what counts as a lack of it, and what can be measured where."""

import pytest
import torch

from tasks.training.memory import free_memory, is_out_of_memory, measured_peak, release_memory

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def test_what_torch_really_raises_on_a_full_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_errors_that_mean_a_lack_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("can't allocate memory"), OSError(12)]
)
def test_errors_that_mean_something_else(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("name", ["cpu", GPU])
def test_free_memory_is_some_and_releasing_none_is_fine(name):
    device = torch.device(name)
    assert free_memory(device) > 1 << 20
    release_memory(device)


def test_a_peak_is_not_measured_on_a_cpu():
    with measured_peak(CPU) as peak:
        torch.zeros(1 << 20)
    assert peak.taken_bytes == 0


@pytest.mark.parametrize("name", [GPU])
def test_a_peak_is_what_a_block_took_at_most(name):
    with measured_peak(torch.device(name)) as peak:
        large = torch.zeros(1 << 22, device=name)
        del large
        torch.zeros(1 << 10, device=name)
    assert 1 << 24 <= peak.taken_bytes < 1 << 25
