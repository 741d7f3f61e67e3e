"""Privacy in plain Python floats and NumPy, written from the papers' formulas."""

import math

import numpy as np


def gaussian_epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """Return the exact epsilon of some Gaussian mechanisms in a row (Balle and Wang 2018, theorem 8).

    Their composition is one mechanism of noise z / sqrt(steps); delta as a function of epsilon is inverted by halving.
    """
    sigma = noise_multiplier / math.sqrt(steps)

    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def delta_of(epsilon: float) -> float:
        below, above = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
        return cdf(below) - math.exp(epsilon) * cdf(above)

    low, high = 0.0, 300.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


Factors = tuple[np.ndarray, np.ndarray]  # A [R, I], B [O, R], scale folded in


def clipped_mean(
    old: Factors, returned: list[Factors], clip_norm: float, denominator: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the global factors of one module after a round without noise."""
    a_old, b_old = old
    sums = [np.zeros_like(a_old), np.zeros_like(b_old)]
    for a, b in returned:
        rank = len(a)
        a_moved, b_moved = np.zeros_like(a_old), np.zeros_like(b_old)
        a_moved[:rank] = a - a_old[:rank]
        b_moved[:, :rank] = b - b_old[:, :rank]
        norm = math.sqrt((a_moved**2).sum() + (b_moved**2).sum())
        factor = min(1.0, clip_norm / norm) if norm else 1.0
        sums[0] += factor * a_moved
        sums[1] += factor * b_moved
    return a_old + sums[0] / denominator, b_old + sums[1] / denominator
