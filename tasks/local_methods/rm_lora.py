"""RM-LoRA: slots kept apart by a penalty, and a random share of them trained at every step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.pairs import ModelPair, lora_pairs
from tasks.local_methods.regulariser import Regulariser
from tasks.local_methods.slot_masks import Held, hold, idle_slots, put_back
from tasks.options import Option
from tasks.rounds.seeds import derive_seed

RM_LAMBDA = Option(
    name="rm_lambda", description="strength of the penalty that keeps slots apart, 0 for none", default=0.1, most=1e6
)
RM_FORM = Option(
    name="rm_form",
    description="orthogonal wants slots at right angles and of one length, cosine only at right angles",
    default="orthogonal",
    kind="choice",
    choices=("orthogonal", "cosine"),
)
TARGET_NORM = Option(
    name="target_norm",
    description="length that the orthogonal form wants of a slot of a and of b, 0 for 1 / sqrt(scaling)",
    default=0.0,
    most=1e6,
)
MASK_SCOPE = Option(
    name="mask_scope",
    description="step draws anew at every step which slots train, all of them in the first; round draws once",
    default="step",
    kind="choice",
    choices=("step", "round"),
)
MASK_SHARE = Option(
    name="mask_share",
    description="slots of a module that train at a time, one at least; 1 for no mask [fraction]",
    default=0.5,
)
MASK_PAIRED = Option(
    name="mask_paired",
    description="1 trains the same slots of a and of b, 0 draws those of b by themselves",
    default=1,
    kind="switch",
)


@dataclass(frozen=True)
class SlotMask:
    """Which slots sit a step out.

    Args:
        seed: Seed of the draws.
        scope: "step" draws anew at every step but the first, which trains all; "round" draws once.
        share: Share of a module's slots that train.
        is_paired: The same slots of `a` and of `b` sit out.
    """

    seed: int
    scope: Literal["step", "round"]
    share: float
    is_paired: bool

    def idle(self, pair: ModelPair, step: int) -> Iterator[tuple[nn.Parameter, int, np.ndarray]]:
        """Yield the factors of a pair that have slots to hold still.

        Args:
            pair: Of the model.
            step: Number of the optimizer's step, from 1.

        Yields:
            (parameter, its dimension of slots, [K] slots that sit out).
        """
        if self.scope == "step" and step == 1:
            return
        draw = 0 if self.scope == "round" else step
        seed_of = partial(derive_seed, self.seed, "rm_lora", draw, pair.path)
        seeds = (seed_of("a"), seed_of("a" if self.is_paired else "b"))
        for dimension, (factor, seed) in enumerate(zip((pair.a, pair.b), seeds, strict=True)):
            slots = idle_slots(pair.rank, self.share, seed=seed)
            if factor.requires_grad and len(slots):
                yield factor, dimension, slots


class RmLora(LocalMethod):
    r"""Adds $\lambda R$ to the loss, and lets only a random share of each module's slots take a step.

    $R = \frac{1}{m} \sum_l (\|A_l A_l^T - t_l^2 I\|_F + \|B_l^T B_l - t_l^2 I\|_F)$ over the m matrices of a model, or
    the mean absolute cosine between their slots. A slot that sits out keeps its bits, and so does what the optimizer
    remembers of it; dense tensors take every step.

    Args:
        occasion: Whose training; its seed draws the slots.
        regulariser: What keeps slots apart.
        mask: Which slots sit out.

    Invariants:
        A share of 1 is plain training bit for bit, the penalty aside. Draws depend on the occasion, the step and the
        module's path alone.

    References:
        "Enhancing Parameter Efficiency and Generalization in Large-Scale Models: A Regularized and Masked Low-Rank
        Adaptation Approach", https://arxiv.org/abs/2407.12074. Read: the authors' code and the abstract, not the paper;
        its forms, its strength, the share of a half and the unmasked first step are the code's. At B = 0 the penalty
        is no more than the square root of R per B, without a gradient: no sign of progress.
        We differ: the code masks every gradient, so that a head stops learning after the first step, here only factors
        are masked; there a masked slot still moves by momentum and weight decay, here it is put back, its moments too
        (the count of steps that Adam corrects them by goes on); masks go by module path, not by the order of tensors;
        a slot's target length follows the scaling, where the code has 1; a share drawn once a round is ours.
    """

    def __init__(self, occasion: Occasion, regulariser: Regulariser, mask: SlotMask) -> None:
        super().__init__(occasion)
        self._regulariser, self._mask = regulariser, mask
        self._pairs: list[ModelPair] = []
        self._held: list[Held] = []

    def start(self, model: nn.Module) -> None:
        """Find the model's pairs."""
        self._pairs = lora_pairs(model)

    def penalty(self, model: nn.Module, loss_again: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Return the regulariser's value."""
        del model, loss_again
        return self._regulariser.penalty(self._pairs)

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Copy the slots that sit this step out."""
        del model
        idle = (found for pair in self._pairs for found in self._mask.idle(pair, step))
        self._held = [hold(optimizer, *found) for found in idle]

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Put back the slots that sat it out."""
        del model, step
        for held in self._held:
            put_back(optimizer, held)
        self._held = []


def rm_lora(  # noqa: PLR0913  one keyword per option
    occasion: Occasion,
    *,
    rm_lambda: float,
    rm_form: Literal["orthogonal", "cosine"],
    target_norm: float,
    mask_scope: Literal["step", "round"],
    mask_share: float,
    mask_paired: bool,
) -> RmLora:
    """Make RM-LoRA's hooks from the options of its row.

    Args:
        occasion: Whose training.
        rm_lambda: Strength of the penalty.
        rm_form: Its form.
        target_norm: Length that the orthogonal form wants of a slot; 0 for 1 / sqrt(scaling).
        mask_scope: How often slots are drawn.
        mask_share: Share of a module's slots that train.
        mask_paired: The same slots of `a` and of `b`.
    """
    mask = SlotMask(occasion.seed, mask_scope, mask_share, mask_paired)
    return RmLora(occasion, Regulariser(rm_lambda, rm_form, target_norm), mask)
