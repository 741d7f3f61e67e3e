"""HetLoRA: zero-padding in which a client counts by how large its update is."""

import math
import sys
from collections.abc import Mapping
from functools import partial
from typing import Self

import numpy as np

from tasks.adapters.lora import LoraAdapter, check_finite
from tasks.adapters.products import pair_norm
from tasks.aggregators.fold import Fold, check_weight
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.running_means import check_modules_fit
from tasks.aggregators.slot_means import SlotMeans, read_out
from tasks.options import Option

PER_MODULE = Option(
    name="per_module",
    description="1 weighs a client by its update of each module, 0 by its update of all modules together",
    default=0.0,
    kind="switch",
)

# As good as nothing beside any real norm, and an exact equal share where no client has a norm.
_NOTHING = sys.float_info.min


def hetlora(*, per_module: bool = False) -> Fold:
    r"""Pad every client's factors with zeros and weigh clients by the Frobenius norm of their product.

    $p_k = \|\Delta W_k\|_F / \sum_l \|\Delta W_l\|_F$, $\bar a_r = \sum_{k: R_k > r} p_k a_{k,r}$, and the same for
    columns of b; the sums run over all clients that trained the module. Only who counts how much differs from
    `zero_pad`: here no example counts, so the given weights play no part in the factors.

    Args:
        per_module: Take the norm of each module by itself; otherwise of all modules of a client together.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), the inputs'
        dtype; norms in float64, sums in float32, or float64 for float64 inputs.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a given weight is not a positive finite number, or a norm is infinite.
        NonFiniteUpdateError: While folding: a value is NaN or infinite; or at the end, where dense means overflow.

    Invariants:
        One client -> itself. Weights of the factors do not depend on the given ones: two halves of a client count
        twice. Equal norms -> `zero_pad` with equal weights. Not a fixed point of rounds in which nobody learns: slot
        j's product shrinks by its norm coverage squared.

    References:
        Yae Jee Cho, Luyang Liu, Zheng Xu, Aldi Fahrezi, Gauri Joshi, "Heterogeneous LoRA for Federated Fine-tuning of
        On-Device Foundation Models", EMNLP 2024, https://arxiv.org/abs/2401.06432. Read: third-party notes of a
        re-implementation, which quote the paper and are where the norm weights come from; no official code exists.
        Whether the norm is per module or per client is not certain from these, hence the switch.
        We differ: the scale is folded into b first; dense tensors, which have no product, are averaged with the given
        weights; where all products are zero (nobody learnt) clients count alike, otherwise a client with a zero product
        has no say but still owns its slots; a module that no client trained keeps its previous value. As published,
        slots of the previous adapter that nobody owns this round become zero. The paper's pruning of ranks is local
        work and not part of this method.
    """
    name = "hetlora per module" if per_module else "hetlora"
    start = partial(NormWeighted, per_module=per_module)
    return OrderedFold(name, start, _read_out_padded)


class NormWeighted:
    """Means over some updates, factors weighted by the norm of their product and dense tensors as given.

    Memory is one adapter of the largest ranks seen.

    Args:
        per_module: Whether each module has a norm of its own.
    """

    def __init__(self, *, per_module: bool) -> None:
        self.means = SlotMeans()
        self._per_module = per_module

    def add(self, update: LoraAdapter, weight: float, *, subject: str) -> None:
        """Take in one update.

        Args:
            update: Any scaling, ranks and float dtypes; never written to or kept.
            weight: A positive finite weight, for the dense tensors.
            subject: Whom an error names.

        Raises:
            AdapterShapeError: A module's layer or a dense tensor's shape differs from those before, or a rank is 0.
            InvalidWeightError: The norm overflows.
            NonFiniteUpdateError: A value is NaN or infinite.
        """
        check_finite(update, subject)
        alone = SlotMeans()
        for path, norm in self._norms(update).items():
            check_weight(norm, f"{subject}, module {path}, norm of its product")
            alone.add(LoraAdapter({path: update.pairs[path]}), norm, subject=subject)
            if path in self.means.modules:
                check_modules_fit(alone.modules[path], self.means.modules[path], f"{subject}, module {path}")
        self.means.add(LoraAdapter({}, update.dense), weight, subject=subject)
        self.means.absorb(alone)

    def absorb(self, later: Self) -> None:
        """Take over the means of later positions.

        Args:
            later: Given up.

        Raises:
            AdapterShapeError: The two do not fit together.
        """
        self.means.absorb(later.means)

    def _norms(self, update: LoraAdapter) -> Mapping[str, float]:
        norms = {path: pair_norm(pair) for path, pair in update.pairs.items()}
        if not self._per_module:
            norms = dict.fromkeys(norms, math.hypot(*norms.values()))
        return {path: max(norm, _NOTHING) for path, norm in norms.items()}


def _read_out_padded(gathered: NormWeighted, previous: LoraAdapter | None) -> LoraAdapter:
    return read_out(gathered.means, previous, slot_factor=_coverage)


def _coverage(norms: np.ndarray) -> np.ndarray:
    # Every client that trained the module owns slot 0, so its norm is the sum of all.
    return norms / norms[0]
