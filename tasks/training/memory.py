"""Memory: how much a training may take, how much it took, and whether an error says that there was too little."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

# What torch says where it has no exception of its own: the CPU's allocator, oneDNN, and CUDA's libraries.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out: on a CPU, torch has no class for that."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def free_memory(device: torch.device) -> int:
    """Return the memory that a training on this device may still take [bytes].

    Args:
        device: Where it trains. On a CPU this is what the machine can give without swapping, whoever asks.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch holds for later use is as good as free to us.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


@dataclass
class Peak:
    """What a block took at most.

    Args:
        taken_bytes: Above what was held before; 0 where nothing measures it (CPUs) [bytes].
    """

    taken_bytes: int = 0


@contextmanager
def measured_peak(device: torch.device) -> Iterator[Peak]:
    """Measure the memory of a block.

    Args:
        device: Where it allocates.

    Yields:
        Filled in when the block ends.
    """
    peak = Peak()
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield peak
    peak.taken_bytes = max(0, torch.cuda.max_memory_allocated(device) - before)


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps for later use, so that a smaller training finds room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
