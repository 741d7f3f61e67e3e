"""What a local method may do: hooks on the one training loop, each of which does nothing unless a method says so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Occasion:
    """One client's training in one round.

    Args:
        seed: Seed of everything the method draws; the same for the same run, round and client.
        round_index: The rounds that made a new global adapter before this one, plus one: a failed round is not counted.
    """

    seed: int
    round_index: int


class LocalMethod:
    """Hooks on the one training loop; a method is made for one training and may keep state between its steps.

    Args:
        occasion: Whose training it is made for.
    """

    def __init__(self, occasion: Occasion) -> None:
        self.occasion = occasion

    def start(self, model: nn.Module) -> None:
        """Look at the adapted model before the optimizer is made, and freeze what must not train.

        Args:
            model: The adapted model, loaded with what the server sent.
        """

    def penalty(self, model: nn.Module, loss_again: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Return a scalar to add to the task's loss, differentiable in the trained tensors, or None.

        Called once for every batch, outside autocast: what it computes is in the precision of the tensors.

        Args:
            model: The adapted model.
            loss_again: Computes the task's loss on this batch once more, with the same dropout and autocast, e.g. after
                a change to the model.

        Returns:
            Scalar tensor, or None to leave the loss alone.
        """
        del model, loss_again

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Change gradients in place, after clipping and before the optimizer's step.

        Args:
            model: The adapted model.
            optimizer: What is about to step; its state is empty before the first step.
            step: Number of the optimizer's step, from 1.
        """

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Change parameters in place, after the optimizer's step; gradients are gone by then.

        Args:
            model: The adapted model.
            optimizer: What has stepped.
            step: Number of the optimizer's step, from 1.
        """

    def finish(self, model: nn.Module) -> None:
        """Put back what `start` changed in how the model is built, after the last step or an error.

        Args:
            model: The trained model; plain, with the parameters it came with, once all methods are through.
        """

    def kept_ranks(self, model: nn.Module, ranks: Mapping[str, int]) -> Mapping[str, int]:
        """Say after the training how many slots of each module are worth sending.

        Args:
            model: The trained model.
            ranks: Module path -> rank it trained at.

        Returns:
            Module path -> rank, never above those given.
        """
        del model
        return ranks
