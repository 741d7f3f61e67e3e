"""How a client trains: the numbers, the table of optimizers, and which device and precision they mean here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tasks.errors import ConfigError, UnknownNameError

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainingSpec:
    """How a client trains.

    Args:
        epochs: Passes over the client's examples; not used if `max_steps` is set.
        max_steps: Optimizer steps, over as many passes as that takes; 0 for whole epochs.
        batch_size: Examples per forward pass.
        learning_rate: Of the optimizer, constant.
        optimizer: Name in `OPTIMIZERS`.
        momentum: Of "sgd".
        weight_decay: Of the optimizer.
        max_grad_norm: Largest 2-norm of all gradients together; 0 turns clipping off.
        accumulation_steps: Batches per optimizer step.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 on a GPU that has it, fp32 elsewhere.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
    """

    epochs: int = 1
    max_steps: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    accumulation_steps: int = 1
    precision: str = "auto"
    device: str = "auto"


def _adam(parameters: list[nn.Parameter], spec: TrainingSpec) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def _adamw(parameters: list[nn.Parameter], spec: TrainingSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def _sgd(parameters: list[nn.Parameter], spec: TrainingSpec) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
    )


# Fused steps: one call for all tensors, a quarter of the default's time on the many small ones of an adapter.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], TrainingSpec], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def resolve_device(name: str) -> torch.device:
    """Turn a device's name into the device.

    Args:
        name: "auto", "cpu" or "cuda".

    Returns:
        The device; "auto" is a GPU if there is one.

    Raises:
        UnknownNameError: No such name.
        ConfigError: No GPU is there that torch can use.
    """
    if name not in DEVICES:
        raise UnknownNameError("device", name, DEVICES)
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError("training.device", "torch finds no GPU it can use", got=name, remedy="use auto or cpu")
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu and name != "cpu" else torch.device("cpu")


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Tell whether forward passes run in bfloat16.

    Args:
        precision: Name in `PRECISIONS`; "auto" is bf16 on a GPU that has it.
        device: Where they run.

    Returns:
        True for bf16 autocast, False for float32.

    Raises:
        UnknownNameError: No such precision.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    return precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )


@contextmanager
def limited_threads(cpu_threads: int) -> Iterator[None]:
    """Let the block use so many CPU threads of torch, then put the number back.

    Enter this around everything that trains, in the thread that starts it. The number has two homes: torch's, for the
    whole process, and OpenMP's, for each thread; threads that train call `keep_to_threads` besides.

    Args:
        cpu_threads: How many; 0 changes nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(cpu_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_to_threads(cpu_threads: int) -> None:
    """Let the calling thread use so many CPU threads of torch, for as long as it lives.

    Args:
        cpu_threads: The number that `limited_threads` was entered with; 0 changes nothing.
    """
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
