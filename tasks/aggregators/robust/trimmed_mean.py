"""Trimmed mean: drop the extremes of every coordinate, average the rest."""

from collections.abc import Sequence
from functools import partial

import torch

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.consensus import consensus, unguarded
from tasks.aggregators.robust.screen import Screen, Screened


def trimmed_mean(trim_frac: float = 0.2) -> Screen:
    r"""Replace all updates by one whose every coordinate is the trimmed mean over the clients that own its slot.

    Of n owners the $\lfloor \beta n \rfloor$ smallest and as many of the largest values are dropped. Coordinates are
    those of the balanced SVD of each module's product; read in `consensus` where that fails. The clients' weights do
    not count.

    Args:
        trim_frac: $\beta$, the share dropped at each end [fraction], 0 or more and below 1/2.

    Returns:
        The rule: one update, weight 1. A slot with fewer than 1 / trim_frac owners is not trimmed (of 4 owners, 0.2
        is none), so a single hostile owner moves it at will: its notes say so.

    Invariants:
        Where at most $\lfloor \beta n \rfloor$ of a slot's owners are hostile, every coordinate of it lies between two
        honest ones. All updates the same -> their product. Order of the clients irrelevant to the bit; gauge and
        weights irrelevant.

    References:
        Dong Yin, Yudong Chen, Kannan Ramchandran, Peter Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, https://arxiv.org/abs/1803.01498, option II. Recalled, not re-read.
        We differ: there, gradients of one shape; here, canonical factors, and slots over their owners.
    """
    return partial(_screen, trim_frac=trim_frac)


def num_trimmed(count: int, trim_frac: float) -> int:
    """Return how many of so many values are dropped at each end.

    Args:
        count: Number of values.
        trim_frac: Share dropped at each end [fraction].
    """
    # 0.29 * 100 is 28.999999999999996: a share that names a whole number must drop that many.
    return int(trim_frac * count + 1e-9)


def _screen(updates: Sequence[LoraAdapter], weights: Sequence[float], *, trim_frac: float) -> Screened:
    del weights
    notes = unguarded(
        updates,
        lambda owners: num_trimmed(owners, trim_frac) > 0,
        f"have so few owners that trimming {trim_frac:g} at each end trims none",
    )
    return Screened((consensus(updates, partial(_trimmed, trim_frac=trim_frac)),), (1.0,), notes)


def _trimmed(values: torch.Tensor, *, trim_frac: float) -> torch.Tensor:
    cut = num_trimmed(len(values), trim_frac)
    return values.sort(dim=0).values[cut : len(values) - cut].mean(dim=0)
