"""Zero-padding: clients of small rank count as zeros in the slots they do not own."""

from functools import partial

import numpy as np

from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.slot_means import SlotMeans, read_out


def zero_pad(coverage_exponent: float = 0.0) -> Fold:
    r"""Pad every client's factors with zeros to the largest rank, then average them.

    $\bar a_r = \sum_{k: R_k > r} w_k a_{k,r} / \sum_k w_k$, and the same for columns of b; the sum below
    runs over all clients that trained the module. With coverage $c_r = \sum_{k: R_k > r} w_k / \sum_k w_k$ both
    factors are RBLA's times c_r, so a slot's product shrinks by c_r squared each round even if nobody learns.

    Args:
        coverage_exponent: 0 is zero-padding as published, 1 owners-only means (RBLA); between them the owners' mean is
            multiplied by c_r to the power of 1 less this number, which trades dilution against owners' bias.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), the inputs'
        dtype, accumulated in float32, or float64 for float64 inputs.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite.

    Invariants:
        One client -> itself. Equal ranks -> weighted mean of factors. Equals `rbla` times coverage on both factors.
        Not a fixed point of rounds in which nobody learns.

    References:
        Yae Jee Cho, Luyang Liu, Zheng Xu, Aldi Fahrezi, Gauri Joshi, "Heterogeneous LoRA for Federated Fine-tuning of
        On-Device Foundation Models", EMNLP 2024, https://arxiv.org/abs/2401.06432: the padding alone, with the caller's
        weights. Read: third-party notes of a re-implementation, which quote the paper; no official code exists.
        As published, slots of the previous adapter that nobody owns this round have coverage 0 and become zero.
        We differ: the scale is folded into b first; a module that no client trained keeps its previous value, as does
        a dense tensor nobody sent; the paper's norm weights and rank pruning are not part of this method.
    """
    factor = partial(_coverage, exponent=1.0 - coverage_exponent)
    return OrderedFold(f"zero_pad^{coverage_exponent}", SlotMeans, partial(read_out, slot_factor=factor))


def _coverage(weights: np.ndarray, exponent: float) -> np.ndarray:
    # Every client that trained the module owns slot 0, so its weight is the module's whole weight.
    return (weights / weights[0]) ** exponent
