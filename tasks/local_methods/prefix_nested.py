"""Prefix-nested training: the first slots of an adapter learn to do without the others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.pairs import ModelPair, lora_pairs
from tasks.options import Option
from tasks.rounds.seeds import derive_seed

NESTED_WEIGHT = Option(
    name="nested_weight",
    description="weight of the loss under a cut rank beside the loss at the full one, 0 for none",
    default=1.0,
    most=1e3,
)


class PrefixNested(LocalMethod):
    """Adds the task's loss on the same batch with all slots beyond a drawn prefix switched off.

    Each batch has one prefix, the same fraction of every module: $k = 1 + floor(u (R - 1))$ slots with u uniform in
    [0, 1), so at rank R each of 1 to R - 1 is as likely as the others. Costs a second forward and backward pass.

    Args:
        occasion: Whose training; its seed draws the prefixes.
        nested_weight: Factor of the added loss; 0 adds nothing.

    Invariants:
        The added loss does not depend on the slots that are off, and gives them no gradient. A module of rank 1 is
        never cut; where all are, nothing is added.

    References:
        PreLort, https://arxiv.org/abs/2606.15963, after its abstract only: training under several rank truncations at
        once, so that a client of low rank receives a prefix that works. Ours: one truncation a batch, how it is drawn,
        the sum of the two losses, and its weight.
    """

    def __init__(self, occasion: Occasion, *, nested_weight: float) -> None:
        super().__init__(occasion)
        self._weight = nested_weight
        self._pairs: list[ModelPair] = []
        self._num_batches = 0

    def start(self, model: nn.Module) -> None:
        """Find the model's pairs."""
        self._pairs = [pair for pair in lora_pairs(model) if pair.rank > 1]

    def penalty(self, model: nn.Module, loss_again: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Return the loss under this batch's prefix."""
        del model
        if not self._weight or not self._pairs:
            return None
        self._num_batches += 1
        rng = np.random.default_rng(derive_seed(self.occasion.seed, "prefix_nested", self._num_batches))
        with only_prefixes(self._pairs, nested_ranks([pair.rank for pair in self._pairs], rng.random())):
            return self._weight * loss_again()


def nested_ranks(ranks: Sequence[int], fraction: float) -> list[int]:
    """Cut every rank by one fraction.

    Args:
        ranks: Each at least 2.
        fraction: In [0, 1).

    Returns:
        Ranks from 1 to one below those given.
    """
    return [1 + int(fraction * (rank - 1)) for rank in ranks]


@contextmanager
def only_prefixes(pairs: Sequence[ModelPair], kept: Sequence[int]) -> Iterator[None]:
    """Let modules compute with their first slots only, while the block runs; parameters are not touched.

    Args:
        pairs: The modules' pairs.
        kept: How many slots each keeps.

    Yields:
        Nothing; gradients of what the block computes reach the slots that were kept.
    """
    try:
        for pair, count in zip(pairs, kept, strict=True):
            # An attribute of the instance stands before the parameter of that name. Hooks on outputs would not do:
            # embeddings read `a` without calling a module.
            vars(pair.reader)[pair.attribute] = _only_first(pair.a, count)
        yield
    finally:
        for pair in pairs:
            vars(pair.reader).pop(pair.attribute, None)


def _only_first(a: torch.Tensor, count: int) -> torch.Tensor:
    is_kept = torch.arange(len(a), device=a.device) < count
    return a * is_kept.reshape(-1, *[1] * (a.ndim - 1))
