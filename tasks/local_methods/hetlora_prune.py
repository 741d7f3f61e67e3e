"""HetLoRA's self-pruning: a client gives up its last slots once training has made them small."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.pairs import ModelPair, lora_pairs
from tasks.options import Option

PRUNE_GAMMA = Option(
    name="prune_gamma",
    description="slots of a module that stay when the others are pruned [fraction]",
    default=0.99,
    most=0.9999,
)
PRUNE_LAMBDA = Option(
    name="prune_lambda",
    description="strength of the penalty on the slots that may be pruned",
    default=0.01,
    most=1e6,
)
PRUNE_MIN_RANK = Option(
    name="prune_min_rank",
    description="rank that a client does not prune itself below [slots]",
    default=4,
    least=1,
    most=4096,
    kind="count",
)


class HetloraPrune(LocalMethod):
    r"""Adds $\lambda \sum_l \|B_{l,tail}\|_F \|A_{l,tail}\|_F$, and drops the tails if that sum fell in training.

    A module's tail is its slots from $\lfloor \gamma R \rfloor$ on, one at least. What stays is a prefix, not the
    largest slots: slot r of one client meets slot r of the others in the server's means, and shares are prefixes too.
    The penalty is what moves the work out of the tail.

    Args:
        occasion: Whose training.
        prune_gamma: $\gamma$, below 1.
        prune_lambda: $\lambda$; 0 leaves the loss alone and prunes all the same.
        prune_min_rank: The client's smallest rank; a module of lower rank than the client's largest keeps the same
            fraction, rounded half up, at least 1.

    Invariants:
        No rank grows, and none falls below its minimum. A tail of zeros on receipt, as in the first round, cannot fall,
        so nothing is pruned.

    References:
        Yae Jee Cho, Luyang Liu, Zheng Xu, Aldi Fahrezi, Gauri Joshi, "Heterogeneous LoRA for Federated Fine-tuning of
        On-Device Foundation Models", EMNLP 2024, https://arxiv.org/abs/2401.06432. Read: third-party notes of a
        re-implementation, which are where the defaults come from; no official code exists. As there, factors count
        without the layer's scaling, and slots are penalised even where the minimum keeps them.
        We differ: ranks are those of modules, the minimum is one of clients.
    """

    def __init__(self, occasion: Occasion, *, prune_gamma: float, prune_lambda: float, prune_min_rank: int) -> None:
        super().__init__(occasion)
        self._gamma, self._lambda, self._min_rank = prune_gamma, prune_lambda, prune_min_rank
        self._pairs: list[ModelPair] = []
        self._received = 0.0

    def start(self, model: nn.Module) -> None:
        """Measure the tails on receipt."""
        self._pairs = lora_pairs(model)
        self._received = self._tail_size()

    def penalty(self, model: nn.Module, loss_again: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Return the tails' size times the strength."""
        del model, loss_again
        return self._lambda * torch.stack(self._tails()).sum() if self._lambda and self._pairs else None

    def kept_ranks(self, model: nn.Module, ranks: Mapping[str, int]) -> Mapping[str, int]:
        """Drop the tails if they are smaller than on receipt."""
        del model
        if not self._tail_size() < self._received:
            return ranks
        trained = {pair.path: pair.rank for pair in self._pairs}
        kept = pruned_ranks(trained, gamma=self._gamma, min_rank=self._min_rank)
        return {path: min(rank, kept.get(path, rank)) for path, rank in ranks.items()}

    def _tails(self) -> list[torch.Tensor]:
        return [tail_norm(pair, tail_start(pair.rank, self._gamma)) for pair in self._pairs]

    @torch.no_grad()
    def _tail_size(self) -> float:
        return math.fsum(float(norm) for norm in self._tails())


def tail_start(rank: int, gamma: float) -> int:
    """Return the first slot of a module's tail.

    Args:
        rank: The module's rank, R.
        gamma: Below 1.

    Returns:
        The whole part of gamma times R, below R: 0.57 of 100 is 57, whatever the product of floats.
    """
    return math.floor(gamma * rank + 1e-9)


def tail_norm(pair: ModelPair, start: int) -> torch.Tensor:
    """Return the product of the Frobenius norms of a pair's last slots.

    Args:
        pair: Of the model.
        start: The first slot that counts.

    Returns:
        Scalar, differentiable; where one factor's tail is zero it has no gradient there.
    """
    return torch.linalg.vector_norm(pair.a_slots[start:]) * torch.linalg.vector_norm(pair.b_slots[start:])


def pruned_ranks(ranks: Mapping[str, int], *, gamma: float, min_rank: int) -> dict[str, int]:
    """Return what modules keep when they drop their tails.

    Args:
        ranks: Module path -> rank; the largest is the client's.
        gamma: Below 1.
        min_rank: The client's smallest rank [slots].

    Returns:
        Module path -> rank, at least 1 and at most the one given.
    """
    largest = max(ranks.values())
    minimum = {path: max(1, int(min_rank * rank / largest + 0.5)) for path, rank in ranks.items()}
    return {path: min(rank, max(minimum[path], tail_start(rank, gamma))) for path, rank in ranks.items()}
