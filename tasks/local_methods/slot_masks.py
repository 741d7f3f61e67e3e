"""Slots that sit an optimizer step out: drawing them, and seeing to it that the step leaves no trace on them.

A zeroed gradient is not enough: Adam goes on moving a slot by what its moments remember, and weight decay shrinks it.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Held:
    """Slots of one parameter as they were before a step.

    Args:
        parameter: Whose slots.
        dimension: Which of its dimensions is the slots.
        slots: [K] positions.
        values: What the parameter held there.
        moments: Name in the optimizer's state -> what it held there; empty before the optimizer's first step.
    """

    parameter: nn.Parameter
    dimension: int
    slots: torch.Tensor
    values: torch.Tensor
    moments: dict[str, torch.Tensor] = field(default_factory=dict)


def idle_slots(rank: int, share: float, *, seed: int) -> np.ndarray:
    """Draw which slots of a module sit out.

    Args:
        rank: The module's rank, R.
        share: Share of its slots that train; one does at least, and it is rounded half up.
        seed: Seed of the draw.

    Returns:
        [R - K] positions, rising, drawn uniformly without replacement.
    """
    trained = max(1, int(share * rank + 0.5))
    return np.sort(np.random.default_rng(seed).choice(rank, size=rank - trained, replace=False))


@torch.no_grad()
def hold(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, dimension: int, slots: np.ndarray) -> Held:
    """Copy some slots and what the optimizer remembers of them, before a step.

    Args:
        optimizer: What is about to step.
        parameter: One that it steps.
        dimension: Which of the parameter's dimensions is the slots.
        slots: [K] positions.

    Returns:
        Copies; the parameter and the optimizer are left alone.
    """
    index = torch.from_numpy(slots).to(parameter.device)
    moments = _moments(optimizer, parameter)
    return Held(
        parameter,
        dimension,
        index,
        parameter.index_select(dimension, index),
        {name: moment.index_select(dimension, index) for name, moment in moments.items()},
    )


@torch.no_grad()
def put_back(optimizer: torch.optim.Optimizer, held: Held) -> None:
    """Undo a step on the slots that were held.

    Args:
        optimizer: What has stepped.
        held: From before the step; a moment that did not exist then becomes zero, as a slot without history has it.
    """
    held.parameter.index_copy_(held.dimension, held.slots, held.values)
    for name, moment in _moments(optimizer, held.parameter).items():
        before = held.moments.get(name, torch.zeros_like(held.values, dtype=moment.dtype))
        moment.index_copy_(held.dimension, held.slots, before)


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """Return what the optimizer remembers entry by entry; its count of steps is of the whole parameter and goes on."""
    state = optimizer.state.get(parameter, {})
    return {name: value for name, value in state.items() if getattr(value, "shape", None) == parameter.shape}
