"""Plain LoRA: the training step as it is."""

import torch
from torch import nn


class PlainLora:
    """Adds nothing: loss, gradients and step stay as they are.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685; as published,
        the adapter itself being PEFT's.
    """

    def start(self, model: nn.Module) -> None:
        """Do nothing before the first step."""

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """Return None: the loss is the task's own."""
        return None

    def after_backward(self, model: nn.Module, step: int) -> None:
        """Leave the gradients as they are."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Leave the parameters as they are."""
