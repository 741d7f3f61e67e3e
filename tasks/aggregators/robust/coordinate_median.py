"""Coordinate-wise median: the middle value of every coordinate."""

from collections.abc import Sequence

import torch

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.consensus import consensus, unguarded
from tasks.aggregators.robust.screen import Screen, Screened


def coordinate_median() -> Screen:
    r"""Replace all updates by one whose every coordinate is the median over the clients that own its slot.

    Coordinates are those of the balanced SVD of each module's product, so that factors compare at all; read in
    `consensus` where that fails. The clients' weights do not count.

    Returns:
        The rule: one update, weight 1. A slot with one or two owners is not guarded: its notes say so.

    Invariants:
        Where more than half of a slot's owners are honest, every coordinate of it lies between two honest ones. All
        updates the same -> their product. Order of the clients irrelevant to the bit; gauge and weights irrelevant.

    References:
        Dong Yin, Yudong Chen, Kannan Ramchandran, Peter Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, https://arxiv.org/abs/1803.01498, option I. Recalled, not re-read.
        We differ: there, gradients of one shape; here, canonical factors, and slots over their owners.
    """
    return _screen


def median(values: torch.Tensor) -> torch.Tensor:
    """Return the median over the first dimension, between the two middle values if their number is even.

    Args:
        values: [N, ...], N at least 1.

    Returns:
        [...]
    """
    ranked, count = values.sort(dim=0).values, len(values)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2


def _screen(updates: Sequence[LoraAdapter], weights: Sequence[float]) -> Screened:
    del weights
    notes = unguarded(updates, lambda owners: owners > 2, "have fewer than 3 owners: the median guards nothing there")
    return Screened((consensus(updates, median),), (1.0,), notes)
