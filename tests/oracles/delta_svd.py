"""Delta-SVD on dense matrices, written from the rule as stated: G + sum of w_k (dW_k - T_{r_k}(G)), T by dense SVD."""

import numpy as np

from tests.oracles.flexlora import cut

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def delta_svd(
    clients: list[Client], weights: list[float], held: np.ndarray | None = None, rank: int | None = None
) -> np.ndarray:
    """Return the global product [O, I]; `held` is the one before, `rank` what the result is cut to."""
    total = sum(weights)
    result = np.zeros((len(clients[0][1]), len(clients[0][0][0]))) if held is None else held.copy()
    before = result.copy()
    for (a, b, scale), weight in zip(clients, weights, strict=True):
        result += weight / total * (scale * np.array(b) @ np.array(a) - cut(before, len(a)))
    return cut(result, rank or max(len(a) for a, _, _ in clients))
