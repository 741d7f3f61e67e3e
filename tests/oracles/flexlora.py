"""FlexLoRA on dense matrices, written from the published rule: the mean of products, cut by a dense SVD."""

import numpy as np

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def flexlora(clients: list[Client], weights: list[float]) -> np.ndarray:
    """Return the global product [O, I]."""
    total = sum(weights)
    mean = sum(w / total * s * np.array(b) @ np.array(a) for (a, b, s), w in zip(clients, weights, strict=True))
    return cut(np.asarray(mean), max(len(a) for a, _, _ in clients))


def cut(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Return the best approximation of a matrix at a rank (Eckart and Young)."""
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * sigma[:rank]) @ right[:rank]
