"""Robust rules the slow way, from the papers' formulas: dense products in numpy, coordinates in Python loops."""

import math
from collections.abc import Sequence

import numpy as np

Point = np.ndarray  # one client's update as a vector
Factors = tuple[np.ndarray, np.ndarray]  # canonical a [R, I] and b [O, R]


def krum_scores(points: Sequence[Point], num_attackers: int) -> list[float]:
    """Sum each point's n - f - 2 smallest squared distances to the others."""
    scores = []
    for k, point in enumerate(points):
        squares = sorted(float(((point - other) ** 2).sum()) for j, other in enumerate(points) if j != k)
        scores.append(sum(squares[: len(points) - num_attackers - 2]))
    return scores


def summed_distance(point: Point, points: Sequence[Point], weights: Sequence[float]) -> float:
    """What a geometric median makes smallest."""
    return sum(w * float(np.linalg.norm(point - other)) for w, other in zip(weights, points, strict=True))


def geometric_median(points: Sequence[Point], weights: Sequence[float], steps: int = 5000) -> Point:
    """Weiszfeld's iteration on the points themselves, from their mean; smoothed far below any distance."""
    centre = np.average(points, axis=0, weights=weights)
    for _ in range(steps):
        pulls = [w / math.hypot(np.linalg.norm(p - centre), 1e-9) for w, p in zip(weights, points, strict=True)]
        centre = np.average(points, axis=0, weights=pulls)
    return centre


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle ones."""
    ranked = sorted(values)
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


def trimmed_mean(values: Sequence[float], trim_frac: float) -> float:
    """Drop the share at each end, average the rest."""
    cut = math.floor(trim_frac * len(values))
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def canonical(product: np.ndarray, rank: int) -> Factors:
    """Split a dense product by SVD, balanced, the largest entry of each left vector positive, padded to the rank."""
    left, sigma, right = np.linalg.svd(product, full_matrices=False)
    a, b = np.zeros((rank, product.shape[1])), np.zeros((product.shape[0], rank))
    for slot in range(min(rank, int((sigma > 1e-12 * max(sigma[0], 1e-300)).sum()))):
        sign = math.copysign(1.0, left[np.abs(left[:, slot]).argmax(), slot])
        a[slot], b[:, slot] = sign * sigma[slot] ** 0.5 * right[slot], sign * sigma[slot] ** 0.5 * left[:, slot]
    return a, b


def over_owners(clients: Sequence[Factors], combine) -> Factors:
    """Combine coordinate by coordinate, every slot over the clients whose rank reaches it."""
    rank = max(a.shape[0] for a, _ in clients)
    a_all, b_all = np.zeros((rank, clients[0][0].shape[1])), np.zeros((clients[0][1].shape[0], rank))
    for slot in range(rank):
        owners = [(a, b) for a, b in clients if a.shape[0] > slot]
        for i in range(a_all.shape[1]):
            a_all[slot, i] = combine([float(a[slot, i]) for a, _ in owners])
        for o in range(b_all.shape[0]):
            b_all[o, slot] = combine([float(b[o, slot]) for _, b in owners])
    return a_all, b_all
