"""Geometric median: the point whose summed distance to all updates is smallest, as new weights for them."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.geometry import inner_products
from tasks.aggregators.robust.screen import Screen, Screened

TOLERANCE = 1e-10  # change of any share at which the iteration has arrived
NOTEWORTHY = 0.5  # clients that count for less than this part of their weight are named


def geometric_median(iterations: int = 100, smoothing: float = 1e-6) -> Screen:
    r"""Give every update the weight with which the mean of all of them is their geometric median.

    $z = \arg\min_z \sum_k w_k \sqrt{\|x_k - z\|^2 + \epsilon^2}$ over products and dense tensors is a weighted mean
    $\sum_k \beta_k x_k$, found by Weiszfeld's iteration $\beta_k \propto w_k / \sqrt{\|x_k - z\|^2 + \epsilon^2}$. All
    distances follow from the matrix of inner products, so z is never built. The first z leans on clients that have
    half the cohort near them: from the plain mean, one huge outlier would cost most of the iterations.

    The median is that of products. An aggregator that averages factors applies the same weights to another mean, and
    one that averages every slot over its owners hands a slot with one owner to that client however little it weighs.

    Args:
        iterations: Weiszfeld steps at most; fewer once no share changes by more than 1e-10.
        smoothing: epsilon, in lower-median norms of the updates [fraction]: closer updates than this count as one.
            Below 1e-8 the rounding of inner products shows. (Where that norm is zero, epsilon is this number itself.)

    Returns:
        The rule: all updates, weights adding up to 1. Clients that count for less than half their weight are noted.

    Invariants:
        Clients holding a share alpha < 1/2 of the weight move the result by at most 2 (1 - alpha) / (1 - 2 alpha) times
        the radius of the others, however far away they are, but for smoothing. Gauge irrelevant; order irrelevant up to
        rounding.

    References:
        Krishna Pillutla, Sham M. Kakade, Zaid Harchaoui, "Robust Aggregation for Federated Learning", IEEE
        Transactions on Signal Processing 2022, https://arxiv.org/abs/1912.13445 (smoothed Weiszfeld). Recalled, not
        re-read. We differ: epsilon is relative and enters as the root of a sum (there: a floor under the distance), the
        server sees the updates themselves, and the points are products.
    """
    return partial(_screen, iterations=iterations, smoothing=smoothing)


def _screen(updates: Sequence[LoraAdapter], weights: Sequence[float], *, iterations: int, smoothing: float) -> Screened:
    inners = inner_products(updates)
    squared_norms = np.sort(np.diag(inners))
    floor = smoothing**2 * (squared_norms[(len(updates) - 1) // 2] or 1.0)
    given = _normalised(np.asarray(weights) / max(weights))
    shares = _weiszfeld(inners, given, floor, iterations)
    notes = {k: _note(ratio) for k, ratio in enumerate(shares / given) if ratio < NOTEWORTHY}
    return Screened(tuple(updates), tuple(shares.tolist()), notes)


def _note(ratio: float) -> str:
    # Far out the iteration ends on noise: more digits would say something else for another order of clients.
    return f"counts for {f'{ratio:.2f}' if ratio >= 0.01 else 'less than 0.01'} of its weight"


def _weiszfeld(inners: np.ndarray, given: np.ndarray, floor: float, iterations: int) -> np.ndarray:
    shares = _first_shares(inners, given, floor)
    for _ in range(iterations):
        before, pulls = shares, inners @ shares
        squares = np.maximum(np.diag(inners) - 2 * pulls + shares @ pulls, 0.0)
        shares = _normalised(given / np.sqrt(squares + floor))
        if np.abs(shares - before).max() <= TOLERANCE:
            break
    return shares


def _first_shares(inners: np.ndarray, given: np.ndarray, floor: float) -> np.ndarray:
    norms = np.diag(inners)
    squares = np.maximum(norms[:, None] + norms[None, :] - 2 * inners, 0.0)
    halfway = np.sort(squares, axis=1)[:, (len(given) - 1) // 2]
    return _normalised(given / np.sqrt(halfway + floor))


def _normalised(shares: np.ndarray) -> np.ndarray:
    return shares / shares.sum()
