"""FFA: one frozen `a` for everyone, so that averaging `b` averages the products."""

from typing import Self

import torch

from tasks.adapters.lora import LoraAdapter, check_finite
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.running_means import ModuleMean
from tasks.aggregators.slot_means import SlotMeans, read_out
from tasks.errors import FrozenFactorError


def ffa() -> Fold:
    r"""Average `b` over clients that train it on the same frozen `a`, or on its first rows.

    With $a_k$ the first R_k rows of one a, $\sum_k w_k b_k a_k = (\sum_k w_k\,\mathrm{pad}(b_k))\, a$: the mean of `b`,
    missing columns counted as zeros, is the mean of the products, without an SVD. Only `b` has to cross the link.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), the clients'
        `a` to the bit, the inputs' dtype, accumulated in float32, or float64 for float64 inputs.

    Raises:
        FrozenFactorError: While folding: the rows of `a` that two clients share differ.
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: While folding: a value is NaN or infinite; or at the end, where means overflow.

    Invariants:
        One client -> itself. The product of the slots that clients sent is the weighted mean of their products. Not a
        fixed point of rounds in which nobody learns: column j of b shrinks by its coverage.

    References:
        Youbang Sun, Zitao Li, Yaliang Li, Bolin Ding, "Improving LoRA in Privacy-preserving Federated Learning",
        ICLR 2024, https://arxiv.org/abs/2403.12313. Read: third-party notes only; authors and title recalled.
        We differ: the paper has one rank; nested prefixes of one `a` and padded columns of `b` are our derivation. The
        scale is folded into b. Modules and dense tensors nobody trained keep the previous value, and so do slots beyond
        the clients' ranks, whose product comes on top of the mean of what clients sent.
    """
    return OrderedFold("ffa", FrozenMeans, _read_out_padded)


class FrozenMeans:
    """Means over some updates that share the rows of `a`.

    A mean of identical rows is those rows bit for bit, so the running mean is also what newcomers are held against.
    """

    def __init__(self) -> None:
        self.means = SlotMeans()

    def add(self, update: LoraAdapter, weight: float, *, subject: str) -> None:
        """Take in one update.

        Args:
            update: Any scaling, ranks and float dtypes; never written to or kept.
            weight: A positive finite weight.
            subject: Whom an error names.

        Raises:
            FrozenFactorError: Its `a` is not the one of those before.
            AdapterShapeError: A module's layer or a dense tensor's shape differs from those before, or a rank is 0.
            NonFiniteUpdateError: A value is NaN or infinite.
        """
        check_finite(update, subject)
        for path, pair in update.pairs.items():
            self._check_frozen(path, pair.a, subject)
        self.means.add(update, weight, subject=subject)

    def absorb(self, later: Self) -> None:
        """Take over the means of later positions.

        Args:
            later: Given up.

        Raises:
            FrozenFactorError: The two have different rows of `a`.
            AdapterShapeError: The two do not fit together.
        """
        for path, module in later.means.modules.items():
            self._check_frozen(path, module.a, "a later block of updates")
        self.means.absorb(later.means)

    def _check_frozen(self, path: str, a: torch.Tensor, subject: str) -> None:
        mean = self.means.modules.get(path)
        if mean is None or mean.a.shape[1] != a.shape[1]:
            return  # Sizes that do not fit are refused, with their own message, where the means are joined.
        shared = min(len(a), len(mean.a))
        new, held = a[:shared].detach().double(), mean.a[:shared].double()
        if not torch.equal(new, held):
            raise FrozenFactorError(
                f"{subject}, module {path}",
                "its factor a is not the one that the clients before it share",
                got=f"{int((new != held).any(dim=1).sum())} of the {shared} shared rows differ",
                expected="the same frozen a, or its first rows, at every client",
                remedy="train b alone on the a that the server sent, or aggregate with a method that averages both",
            )


def _read_out_padded(gathered: FrozenMeans, previous: LoraAdapter | None) -> LoraAdapter:
    for module in gathered.means.modules.values():
        module.b = module.b * _coverage(module)
    return read_out(gathered.means, previous)


def _coverage(module: ModuleMean) -> torch.Tensor:
    # Every client that trained the module owns slot 0, so its weight is the module's whole weight.
    return torch.from_numpy(module.weights / module.weights[0]).to(module.b.dtype)
