"""How far updates lie apart, and at which angles: whole updates as points, whatever their ranks and gauges.

An update is the vector of all its modules' products and of its dense floating-point tensors; counters are no part of
it. A module or tensor that an update does not hold is zero there. No dense product is built.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import adapter_distance, f64, truncate
from tasks.aggregators.similarity import gram

CLOSE = 1e-8  # squared distance, in squared norms of the two, below which half of the digits of inner products cancel


def squared_distances(updates: Sequence[LoraAdapter]) -> np.ndarray:
    """Return all squared distances between updates.

    From one matrix of inner products. Where two updates are so close that its rounding would show, what they share has
    to cancel before anything is squared: those pairs cost a QR of their difference each.

    Args:
        updates: N updates of one model; finite.

    Returns:
        [N, N] float64, symmetric to the bit, zero on the diagonal.
    """
    inners = inner_products(updates)
    sums = np.diag(inners)[:, None] + np.diag(inners)[None, :]
    squares = sums - 2 * inners
    np.fill_diagonal(squares, 0.0)
    for i, j in np.argwhere(np.triu(squares < CLOSE * sums, k=1)).tolist():
        squares[i, j] = squares[j, i] = _squared_distance(updates[i], updates[j])
    return squares


def inner_products(updates: Sequence[LoraAdapter]) -> np.ndarray:
    """Return all inner products between updates, dense tensors included.

    Every product is brought to its balanced SVD first. Inner products round relative to the factors, and a client may
    choose factors that are huge and cancel: left as they are, it could drown the geometry of the others in rounding.

    Args:
        updates: N updates of one model; finite.

    Returns:
        [N, N] float64, symmetric to the bit.
    """
    plain = [LoraAdapter({path: canonical(pair) for path, pair in update.pairs.items()}) for update in updates]
    return gram(plain) + _dense_inner_products(updates)


def canonical(pair: LoraPair) -> LoraPair:
    """Return a module's update in the one form that all its factorings share.

    Args:
        pair: a [R, I], b [O, R]; any scaling and float dtype.

    Returns:
        Float64, scaling 1, the same rank: slots by falling singular value, balanced, the largest entry of each column
        of b positive. Unique as long as no singular values tie and no two entries tie for the largest.
    """
    return truncate(replace(pair, a=f64(pair.a), b=f64(pair.b)), pair.rank)


def floats(update: LoraAdapter) -> dict[str, torch.Tensor]:
    """Return the dense tensors that are measured, as float64: counters are left out.

    Args:
        update: Any update.

    Returns:
        Tensor name -> a copy of the tensor, or the tensor itself if it is float64 on the CPU.
    """
    return {n: f64(t) for n, t in update.dense.items() if t.is_floating_point()}


def _squared_distance(x: LoraAdapter, y: LoraAdapter) -> float:
    ours, theirs = floats(x), floats(y)
    differences = [ours[n] - theirs[n] for n in ours.keys() & theirs.keys()]
    differences += [(ours | theirs)[n] for n in ours.keys() ^ theirs.keys()]
    return adapter_distance(x, y) ** 2 + math.fsum(float(d.square().sum()) for d in differences)


def _dense_inner_products(updates: Sequence[LoraAdapter]) -> np.ndarray:
    total = np.zeros((len(updates), len(updates)))
    tensors = [floats(update) for update in updates]
    for name in sorted({name for own in tensors for name in own}):
        owners = [k for k, own in enumerate(tensors) if name in own]
        rows = torch.stack([tensors[k][name].flatten() for k in owners])
        total[np.ix_(owners, owners)] += (rows @ rows.T).numpy()
    return (total + total.T) / 2
