"""Fed-SB: both factors stay as the server sent them, and only the small core between them learns."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.utils import parametrize

from tasks.adapters.core import frozen_b
from tasks.errors import ModelError
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.pairs import ModelPair, lora_pairs


class FedSb(LocalMethod):
    """Freezes every `a` and has the optimizer see, in place of `b`, the core R of `b = B0 R`: R numbers squared.

    Started with the aggregator of this name rather than by configs, and before other methods: until `finish`, `b` is no
    parameter of the model, so methods that read or write factors do not go with it; those that go by whatever the
    model trains do.

    Args:
        occasion: Whose training.

    Raises:
        ModelError: At the start: a module is an embedding, or its `a` is all zeros.

    Invariants:
        No `a` moves, and `b` stays B0 times a square matrix. Dense tensors train as before. Afterwards the model's
        parameters have the names and sizes that they had before.

    References:
        Fed-SB, https://arxiv.org/abs/2502.15436; the abstract alone was read, so this is inspired by it. We differ: the
        frozen factors are random and orthonormal, where it takes them from a first full gradient; the layer's scaling
        stands before the core. Convolutions are ours.
    """

    def __init__(self, occasion: Occasion) -> None:
        super().__init__(occasion)
        self._readers: Mapping[str, nn.Module] = MappingProxyType({})

    def start(self, model: nn.Module) -> None:
        """Freeze `a`, and put a core in the place of `b`."""
        pairs = lora_pairs(model)
        for pair in pairs:
            _check(pair)
        weights = {id(module.weight): module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        self._readers = {pair.path: weights[id(pair.b)] for pair in pairs}
        for pair in pairs:
            pair.a.requires_grad = False
            on_frozen = _OnFrozen(frozen_b(pair.a, len(pair.b)).to(pair.b), pair.b.shape[2:])
            # Unsafe, to torch, is only that the parameter behind the weight has a shape of its own.
            parametrize.register_parametrization(self._readers[pair.path], "weight", on_frozen, unsafe=True)

    def finish(self, model: nn.Module) -> None:
        """Turn what was learnt into a plain `b`."""
        del model
        for reader in self._readers.values():
            if parametrize.is_parametrized(reader, "weight"):
                parametrize.remove_parametrizations(reader, "weight")


class _OnFrozen(nn.Module):
    """Computes `b` from a core.

    Args:
        basis: B0, [O, R].
        tail: Sizes of `b` after the rank.
    """

    basis: torch.Tensor

    def __init__(self, basis: torch.Tensor, tail: torch.Size) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self._tail = tail

    def forward(self, core: torch.Tensor) -> torch.Tensor:
        return (self.basis @ core).reshape(*self.basis.shape, *self._tail)

    def right_inverse(self, b: torch.Tensor) -> torch.Tensor:
        return self.basis.T @ b.flatten(1)


def _check(pair: ModelPair) -> None:
    if isinstance(pair.reader, nn.ParameterDict):
        raise ModelError(
            f"module {pair.path}", "is an embedding, for which no core can be trained",
            remedy="leave embeddings out of lora.target_modules, or use another aggregator",
        )  # fmt: skip
    if not pair.a.any():
        raise ModelError(
            f"module {pair.path}", "has a factor a of zeros, and frozen it keeps the product at zero",
            remedy="start from the adapter that the run draws for cores",
        )  # fmt: skip
