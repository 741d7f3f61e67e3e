"""Krum and Multi-Krum: keep the updates that lie closest to their neighbours."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.geometry import squared_distances
from tasks.aggregators.robust.screen import Screen, Screened
from tasks.errors import ConfigError


def krum(num_attackers: int = 1) -> Screen:
    r"""Keep the one update whose nearest neighbours are nearest.

    score_k = the sum of update k's n - f - 2 smallest squared distances to the others, distances between products and
    dense tensors; the smallest score wins, of those equal to nine digits the first. One client's update is the whole
    aggregate: robust, and biased towards that client's data.

    Args:
        num_attackers: f, how many hostile updates to withstand; 0 or more.

    Returns:
        The rule: one update and its weight; refuses with ConfigError a cohort below 2 f + 3.

    Invariants:
        The result is an update that some client sent, bit for bit. Gauge, weights and (but for ties) order irrelevant.

    References:
        Peva Blanchard, El Mahdi El Mhamdi, Rachid Guerraoui, Julien Stainer, "Machine Learning with Adversaries:
        Byzantine Tolerant Gradient Descent", NeurIPS 2017, https://arxiv.org/abs/1703.02757. Recalled, not re-read.
        We differ: points are products of factors together with dense tensors, and too small a cohort is an error
        (common code takes at least one neighbour and goes on).
    """
    return partial(_krum, num_attackers=num_attackers)


def multi_krum(num_attackers: int = 1, num_selected: int = 0) -> Screen:
    """Keep the updates with the smallest Krum scores, for the aggregator to average.

    Behind an aggregator that averages factors a client can still hide a large `a` behind a small `b`: the distances are
    between products.

    Args:
        num_attackers: f, how many hostile updates to withstand; 0 or more.
        num_selected: How many updates to keep, at most the cohort less f; 0 keeps exactly that many.

    Returns:
        The rule: the chosen updates in client order with their weights; refuses with ConfigError a cohort below
        2 f + 3, or below f + num_selected.

    Invariants:
        `num_selected` 1 is `krum`. What is kept is handed on as it is.

    References:
        As `krum`; scores are not computed anew after each choice, as in the paper's simpler form. Recalled.
    """
    return partial(_multi_krum, num_attackers=num_attackers, num_selected=num_selected)


def krum_fewest(num_attackers: int = 1) -> int:
    """Return how many updates Krum needs at least.

    Args:
        num_attackers: f.
    """
    return 2 * num_attackers + 3


def multi_krum_fewest(num_attackers: int = 1, num_selected: int = 0) -> int:
    """Return how many updates Multi-Krum needs at least.

    Args:
        num_attackers: f.
        num_selected: How many updates to keep; 0 for as many as there are honest ones.
    """
    return max(krum_fewest(num_attackers), num_attackers + num_selected)


def _krum(updates: Sequence[LoraAdapter], weights: Sequence[float], *, num_attackers: int) -> Screened:
    _check_cohort("krum", len(updates), krum_fewest(num_attackers), f"num_attackers {num_attackers}")
    return _kept(updates, weights, num_attackers, 1)


def _multi_krum(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, num_attackers: int, num_selected: int
) -> Screened:
    fewest = multi_krum_fewest(num_attackers, num_selected)
    wanted = f"num_attackers {num_attackers} and num_selected {num_selected}"
    _check_cohort("multi_krum", len(updates), fewest, wanted)
    return _kept(updates, weights, num_attackers, num_selected or len(updates) - num_attackers)


def _check_cohort(rule: str, num_updates: int, fewest: int, wanted: str) -> None:
    if num_updates < fewest:
        raise ConfigError(
            f"robust rule {rule}",
            f"{wanted} need a larger cohort",
            got=f"{num_updates} updates",
            expected=f"{fewest} or more",
            remedy=f"raise the quorum to {fewest}, withstand fewer attackers, or use geometric_median",
        )


def _kept(updates: Sequence[LoraAdapter], weights: Sequence[float], num_attackers: int, count: int) -> Screened:
    scores = _scores(updates, num_attackers)
    ranking = sorted(range(len(scores)), key=lambda k: (scores[k], k))
    chosen = sorted(ranking[:count])
    worst = scores[ranking[count - 1]]
    notes = {k: f"left out: its score is {scores[k]:.3g}, the largest one kept is {worst:.3g}" for k in ranking[count:]}
    return Screened(tuple(updates[k] for k in chosen), tuple(weights[k] for k in chosen), notes)


def _scores(updates: Sequence[LoraAdapter], num_attackers: int) -> list[float]:
    nearest = len(updates) - num_attackers - 2
    squares = squared_distances(updates)
    scores = [math.fsum(sorted(np.delete(row, k).tolist())[:nearest]) for k, row in enumerate(squares)]
    # What lies beyond is rounding of inner products, which must not decide a tie.
    return [float(f"{score:.9g}") for score in scores]
