"""raFLoRA on dense matrices, written from the published rule: slot j of the mean product over clients that own it."""

import numpy as np

from tests.oracles.flexlora import cut

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def raflora(clients: list[Client], weights: list[float], exponent: float = 1.0) -> np.ndarray:
    """Return the global product [O, I]."""
    total, rank = sum(weights), max(len(a) for a, _, _ in clients)
    result = np.zeros((len(clients[0][1]), len(clients[0][0][0])))
    for slot in range(rank):
        owners = [(c, w) for c, w in zip(clients, weights, strict=True) if slot < len(c[0])]
        owned = sum(w for _, w in owners)
        for (a, b, scale), weight in owners:
            column = np.array([row[slot] for row in b])
            result += weight / total * (total / owned) ** exponent * scale * np.outer(column, a[slot])
    return cut(result, rank)


def raflora_canonical(clients: list[Client], weights: list[float]) -> np.ndarray:
    """Return the global product [O, I] where slot j of a client is its j-th singular direction."""
    return raflora([_canonical(client) for client in clients], weights)


def _canonical(client: Client) -> Client:
    a, b, scale = client
    left, sigma, right = np.linalg.svd(scale * np.array(b) @ np.array(a), full_matrices=False)
    slots = len(a)
    whole_a, whole_b = np.zeros((slots, right.shape[1])), np.zeros((left.shape[0], slots))
    kept = min(slots, len(sigma))
    whole_a[:kept], whole_b[:, :kept] = right[:kept], left[:, :kept] * sigma[:kept]
    return whole_a.tolist(), whole_b.tolist(), 1.0
