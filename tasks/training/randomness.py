"""Torch's one process-wide random generator, borrowed without leaving a trace.

PEFT's initialisation and every dropout layer draw from torch's default generator and take no other. Here it is lent
out under a seed and put back afterwards; nothing else in Rankweave draws from it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Torch has one default generator per process: two clients training in threads would draw from each other's seed.
# The lock guards that generator; it is the only way to share what torch does not let us replace.
_DEFAULT_GENERATOR = threading.Lock()


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let the block draw from the default generators as if freshly seeded, then restore their state.

    Blocks of different threads run one after the other, so keep them short: one initialisation, one forward pass.

    Args:
        seed: Seed of the block's draws.
        device: CUDA device whose generator is lent as well; only the CPU's if None or a CPU.

    Yields:
        Nothing; the block runs with the lent generators.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with _DEFAULT_GENERATOR, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield
