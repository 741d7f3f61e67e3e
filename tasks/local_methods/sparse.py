"""Sparse training: a part of every module's slots is switched off for a round."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.hooks import RemovableHandle

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.pairs import ModelPair, lora_pairs
from tasks.local_methods.slot_masks import Held, hold, idle_slots, put_back
from tasks.options import Option
from tasks.rounds.seeds import derive_seed

SPARSITY = Option(
    name="sparsity",
    description="slots of every module that are switched off for a round, one stays on at least [fraction]",
    default=0.5,
    most=0.95,
)


@dataclass(frozen=True, eq=False)
class Masked:
    """A pair of which some slots are switched off.

    Args:
        pair: Of the model.
        slots: [K] their positions, rising.
        is_on: False for those slots, true for the others; it multiplies `a`.
    """

    pair: ModelPair
    slots: np.ndarray
    is_on: torch.Tensor


class Sparse(LocalMethod):
    r"""Trains the strongest slots of every module, $g = \nabla L(w \circ m)$, $w \leftarrow (w - \eta g) \circ m$.

    A slot's strength is the norm of its product, $\|b_r\| \|a_r\|$; of equals the first stay on. A module none of whose
    slots has any, as in the first round, draws slots at random instead. The mask m holds for one training. Slots that
    are off add nothing while the model trains, and come back as they were sent: their change is zero, and an update
    that says only what changed need not hold them.

    Args:
        occasion: Whose training; its seed draws slots where their strengths say nothing.
        sparsity: Share of a module's slots that are off, at least one being on; what is on is rounded half up.

    Invariants:
        A sparsity of 0 is plain training bit for bit. Slots that are off keep their bits, whatever the optimizer,
        weight decay and penalties would do to them. Dense tensors take every step. Outside of a training pass, and
        after `finish`, the model computes with all its slots.

    References:
        "SAFARI: Sparsity-Enabled Federated Learning with Limited and Unreliable Communications", IEEE TMC 2023,
        https://arxiv.org/abs/2204.02321. Read: the abstract, and a third party's reproduction with its masks by
        magnitude. We differ: the paper's masks are on single weights of a whole model and last some rounds, here they
        are on slots, by the norm of their product, and are made anew in each round; there a weight that is off is zero
        in what is sent, here it stays the server's, so that one client's mask does not wipe out what others learn.
    """

    def __init__(self, occasion: Occasion, *, sparsity: float) -> None:
        super().__init__(occasion)
        self._sparsity = sparsity
        self._masked: list[Masked] = []
        self._handles: list[RemovableHandle] = []
        self._before: list[Any] = []
        self._held: list[Held] = []

    def start(self, model: nn.Module) -> None:
        """Choose the slots, and switch the others off in every pass of training."""
        chosen = ((pair, self._off_slots(pair)) for pair in lora_pairs(model))
        self._masked = [Masked(pair, slots, _is_on(pair, slots)) for pair, slots in chosen if len(slots)]
        if self._masked:
            network = model.get_base_model() if isinstance(model, PeftModel) else model
            # Where several methods switch, they have to come off in the reverse order, and after an error too.
            off = network.register_forward_pre_hook(self._switch_off)
            on = network.register_forward_hook(self._switch_on, prepend=True, always_call=True)
            self._handles = [off, on]

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Copy the slots that are off: their gradients are zero, but not what an optimizer makes of them."""
        del model, step
        factors = ((factor, dim, m.slots) for m in self._masked for dim, factor in enumerate((m.pair.a, m.pair.b)))
        self._held = [hold(optimizer, *found) for found in factors if found[0].requires_grad]

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Put them back."""
        del model, step
        for held in self._held:
            put_back(optimizer, held)
        self._held = []

    def finish(self, model: nn.Module) -> None:
        """Let the model compute with all its slots again."""
        del model
        while self._handles:
            self._handles.pop().remove()

    def _off_slots(self, pair: ModelPair) -> np.ndarray:
        """Return [K] positions, rising, of the slots that are off."""
        drawn = idle_slots(pair.rank, 1 - self._sparsity, seed=derive_seed(self.occasion.seed, "sparse", pair.path))
        strengths = pair.a_slots.detach().norm(dim=1) * pair.b_slots.detach().norm(dim=1)
        if not strengths.any():
            return drawn
        falling = torch.argsort(strengths.cpu(), descending=True, stable=True).numpy()
        return np.sort(falling[pair.rank - len(drawn) :])

    def _switch_off(self, network: nn.Module, _: tuple[Any, ...]) -> None:
        if not network.training:
            return
        # An attribute of the instance stands before the parameter of that name, and another method's before it here.
        self._before = [vars(m.pair.reader).get(m.pair.attribute) for m in self._masked]
        for m in self._masked:
            vars(m.pair.reader)[m.pair.attribute] = getattr(m.pair.reader, m.pair.attribute) * m.is_on

    def _switch_on(self, network: nn.Module, *_: Any) -> None:
        del network
        for m, before in zip(self._masked, self._before, strict=False):
            vars(m.pair.reader).pop(m.pair.attribute, None)
            if before is not None:
                vars(m.pair.reader)[m.pair.attribute] = before
        self._before = []


def _is_on(pair: ModelPair, slots: np.ndarray) -> torch.Tensor:
    is_on = torch.ones(pair.rank, dtype=torch.bool)
    is_on[torch.from_numpy(slots)] = False
    return is_on.reshape(-1, *[1] * (pair.a.ndim - 1)).to(pair.a.device)
