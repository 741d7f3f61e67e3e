"""Norm clipping: no update counts for much more than its size is usual."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import adapter_norm
from tasks.aggregators.robust.consensus import dense_consensus
from tasks.aggregators.robust.coordinate_median import median
from tasks.aggregators.robust.geometry import floats
from tasks.aggregators.robust.screen import Screen, Screened


def norm_clip(factor: float = 2.0) -> Screen:
    r"""Scale down every update whose norm is above a multiple of the cohort's median norm.

    The norm is that of the products, $\| s b a \|_F$ over all modules; what is scaled is each pair's scale, which
    aggregators fold into b. Dense tensors come with values of their own, not with changes, so their distance from the
    coordinate-wise median of the cohort is clipped in the same way: to `factor` times the median distance, all of a
    client's tensors together. A median of 0 says that most clients did not learn, not how large an update may be, so
    it clips nothing.

    Clipping bounds how far one client moves a mean; it does not find attackers, and half the cohort moves the median
    itself. It bounds products: behind an aggregator that averages factors a client can still hide a large `a` behind a
    small `b`, so it belongs in front of one that averages products. Where clients send the adapter they were given
    after training it, the norm is that of the whole adapter, not of the round's change.

    Args:
        factor: Largest norm allowed, in medians; 1 or more.

    Returns:
        The rule: all updates, with the weights given. Clients that a median of 0 left unclipped are noted.

    Invariants:
        No product is longer than `factor` median norms, unless that is 0. Updates within the limit are handed on as
        they are. Order of the clients irrelevant to the bit; gauge irrelevant.

    References:
        Ziteng Sun, Peter Kairouz, Ananda Theertha Suresh, H. Brendan McMahan, "Can You Really Backdoor Federated
        Learning?", 2019, https://arxiv.org/abs/1911.07963 (norm thresholding). Recalled, not re-read.
        We differ: the threshold follows the median (there: a constant), norms are of products, and dense tensors are
        clipped around their median.
    """
    return partial(_screen, factor=factor)


def _screen(updates: Sequence[LoraAdapter], weights: Sequence[float], *, factor: float) -> Screened:
    centre = floats(LoraAdapter({}, dense_consensus(updates, median)))
    norms = {k: adapter_norm(u) for k, u in enumerate(updates) if u.pairs}
    distances = {k: _distance(floats(u), centre) for k, u in enumerate(updates) if floats(u)}
    by_norm, by_distance = _allowed(norms, factor), _allowed(distances, factor)
    clipped = list(updates)
    for k, share in by_norm.items():
        clipped[k] = _shrunk(clipped[k], share)
    for k, share in by_distance.items():
        clipped[k] = _drawn(clipped[k], centre, share)
    notes = [(k, f"clipped to {share:.2g} of its norm") for k, share in by_norm.items()]
    notes += [(k, "not clipped: the median norm is 0") for k in _beyond_measure(norms)]
    notes += [(k, f"dense tensors drawn to {s:.2g} of their distance from the median") for k, s in by_distance.items()]
    notes += [(k, "dense tensors not drawn: the median distance is 0") for k in _beyond_measure(distances)]
    return Screened(tuple(clipped), tuple(weights), _joined(notes))


def _allowed(lengths: Mapping[int, float], factor: float) -> dict[int, float]:
    """Return the share of its length that each too long one may keep; none is too long where the median is 0."""
    limit = factor * _median(lengths)
    return {k: limit / length for k, length in lengths.items() if 0.0 < limit < length}


def _beyond_measure(lengths: Mapping[int, float]) -> list[int]:
    """Name those that have a length where most have none."""
    return [] if _median(lengths) else [k for k, length in lengths.items() if length]


def _median(lengths: Mapping[int, float]) -> float:
    return statistics.median(lengths.values()) if lengths else 0.0


def _joined(notes: Sequence[tuple[int, str]]) -> dict[int, str]:
    return {k: "; ".join(note for client, note in notes if client == k) for k, _ in notes}


def _distance(tensors: Mapping[str, torch.Tensor], centre: Mapping[str, torch.Tensor]) -> float:
    return sum(float((t - centre[n]).square().sum()) for n, t in tensors.items()) ** 0.5


def _shrunk(update: LoraAdapter, share: float) -> LoraAdapter:
    return LoraAdapter({p: replace(q, scaling=q.scaling * share) for p, q in update.pairs.items()}, update.dense)


def _drawn(update: LoraAdapter, centre: Mapping[str, torch.Tensor], share: float) -> LoraAdapter:
    drawn = {n: (centre[n] + share * (t - centre[n])).to(update.dense[n].dtype) for n, t in floats(update).items()}
    return LoraAdapter(update.pairs, {**update.dense, **drawn})
