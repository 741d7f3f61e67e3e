"""HetLoRA in plain Python floats, from the published rule: pad with zeros, weigh by the norm of the product."""

from collections.abc import Sequence
from math import fsum, sqrt

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def norm_weights(modules: Sequence[Sequence[Client]]) -> list[float]:
    """Return one weight per client, from its products in all modules, each a list over the same clients."""
    norms = [sqrt(fsum(_squared_norm(client) for client in of_client)) for of_client in zip(*modules, strict=True)]
    total = sum(norms)
    return [norm / total for norm in norms] if total else [1.0 / len(norms)] * len(norms)


def hetlora(clients: list[Client], weights: list[float]) -> tuple[Matrix, Matrix]:
    """Return the global (A, B) under weights that sum to 1, the scale folded into B."""
    rank = max(len(a) for a, _, _ in clients)
    inputs, outputs = len(clients[0][0][0]), len(clients[0][1])
    a_global = [[0.0] * inputs for _ in range(rank)]
    b_global = [[0.0] * rank for _ in range(outputs)]
    for (a, b, scale), weight in zip(clients, weights, strict=True):
        for slot in range(len(a)):
            for i in range(inputs):
                a_global[slot][i] += weight * a[slot][i]
            for o in range(outputs):
                b_global[o][slot] += weight * scale * b[o][slot]
    return a_global, b_global


def _squared_norm(client: Client) -> float:
    a, b, scale = client
    entries = (scale * sum(row[slot] * a[slot][i] for slot in range(len(a))) for row in b for i in range(len(a[0])))
    return fsum(entry**2 for entry in entries)
