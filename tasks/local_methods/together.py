"""Several local methods at once: their hooks run in the order of the config, their penalties add up."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from tasks.local_methods.hooks import LocalMethod, Occasion


class Together(LocalMethod):
    """Hooks of several methods as those of one.

    Args:
        occasion: Whose training.
        methods: Any number of methods made for this training; none is plain LoRA.
    """

    def __init__(self, occasion: Occasion, methods: Sequence[LocalMethod]) -> None:
        super().__init__(occasion)
        self._methods = tuple(methods)

    def start(self, model: nn.Module) -> None:
        """Start every method."""
        for method in self._methods:
            method.start(model)

    def penalty(self, model: nn.Module, loss_again: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Return the sum of the penalties, or None where no method has one."""
        found = [p for method in self._methods if (p := method.penalty(model, loss_again)) is not None]
        return torch.stack(found).sum() if found else None

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Let every method change the gradients."""
        for method in self._methods:
            method.before_step(model, optimizer, step)

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Let every method change the parameters."""
        for method in self._methods:
            method.after_step(model, optimizer, step)

    def finish(self, model: nn.Module) -> None:
        """Let every method put back what it changed, the last one started first."""
        for method in reversed(self._methods):
            method.finish(model)

    def kept_ranks(self, model: nn.Module, ranks: Mapping[str, int]) -> Mapping[str, int]:
        """Keep what every method keeps."""
        for method in self._methods:
            ranks = method.kept_ranks(model, ranks)
        return ranks
