"""Alternating rounds: `b` learns in one round, `a` in the next."""

from torch import nn

from tasks.local_methods.hooks import LocalMethod
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.promises import turn


class Alternating(LocalMethod):
    """Freezes `a` in odd rounds and `b` in even ones, so that in each round the mean of products is exact.

    Embeddings start the other way round in PEFT, `a` at zero, and learn from round 2 on. What is frozen need not be
    sent back: the server has it from the share.

    Invariants:
        The frozen factors do not move. Dense tensors train in every round.

    References:
        LoRA-A2, https://arxiv.org/abs/2410.22815, and RoLoRA, https://arxiv.org/abs/2502.01755; of both the abstract
        was read. Not here: LoRA-A2's choice of slots within a budget. Which factor goes first is ours, see `turn`.
    """

    def start(self, model: nn.Module) -> None:
        """Freeze the factor whose turn it is not."""
        trains_b = turn(self.occasion.round_index - 1) == "b"
        for pair in lora_pairs(model):
            frozen = pair.a if trains_b else pair.b
            frozen.requires_grad = False
