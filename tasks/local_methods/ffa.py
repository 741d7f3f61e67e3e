"""FFA: `a` stays as the server sent it, and only `b` learns."""

from torch import nn

from tasks.errors import ModelError
from tasks.local_methods.hooks import LocalMethod
from tasks.local_methods.pairs import lora_pairs


class Ffa(LocalMethod):
    """Freezes every `a`; the mean of what clients return is then the mean of their products.

    Raises:
        ModelError: At the start: an `a` is all zeros, as PEFT starts embeddings, so its module could never learn.

    Invariants:
        No `a` moves, so no update need hold it. Dense tensors train as before.

    References:
        Youbang Sun, Zitao Li, Yaliang Li, Bolin Ding, "Improving LoRA in Privacy-preserving Federated Learning",
        ICLR 2024, https://arxiv.org/abs/2403.12313. Read: third-party notes only; authors and title recalled. The
        client's side as published; that a frozen `a` of zeros is refused is ours.
    """

    def start(self, model: nn.Module) -> None:
        """Freeze `a`."""
        for pair in lora_pairs(model):
            if not pair.a.any():
                raise ModelError(
                    f"module {pair.path}", "has a factor a of zeros, and frozen it keeps the product at zero",
                    remedy="leave embeddings out of lora.target_modules, or train both factors",
                )  # fmt: skip
            pair.a.requires_grad = False
