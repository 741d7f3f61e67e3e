"""The table of local methods: what a client's training step adds to plain LoRA; forms, validation and laws read it."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from tasks.errors import UnknownNameError
from tasks.local_methods.lora import PlainLora


class LocalMethod(Protocol):
    """Hooks on the one training loop; a method is made for one training and may keep state between its steps."""

    def start(self, model: nn.Module) -> None:
        """Look at the adapted model before the first step, and freeze what must not train.

        Args:
            model: The adapted model, loaded with what the server sent.
        """
        ...

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """Return a scalar to add to the task's loss, differentiable in the trained tensors, or None.

        Args:
            model: The adapted model.

        Returns:
            Scalar tensor, or None to leave the loss alone.
        """
        ...

    def after_backward(self, model: nn.Module, step: int) -> None:
        """Change gradients in place, after clipping and before the optimizer's step.

        Args:
            model: The adapted model.
            step: Number of the optimizer's step, from 1.
        """
        ...

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change parameters in place, after the optimizer's step.

        Args:
            model: The adapted model.
            step: Number of the optimizer's step, from 1.
        """
        ...


LOCAL_METHODS: dict[str, Callable[[], LocalMethod]] = {
    "lora": PlainLora,
}


def local_method(name: str) -> LocalMethod:
    """Make a local method, fresh for one training.

    Args:
        name: Name in `LOCAL_METHODS`.

    Returns:
        A new instance, without state.

    Raises:
        UnknownNameError: No local method has this name.
    """
    if name not in LOCAL_METHODS:
        raise UnknownNameError("local method", name, LOCAL_METHODS)
    return LOCAL_METHODS[name]()
