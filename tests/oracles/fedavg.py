"""FedAvg of factors in plain Python floats, written from the published rule: the weighted mean of every entry."""

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def fedavg(clients: list[Client], weights: list[float]) -> tuple[Matrix, Matrix]:
    """Return the global (A, B), the scale folded into B; all clients have one rank."""
    total = sum(weights)
    rank, inputs, outputs = len(clients[0][0]), len(clients[0][0][0]), len(clients[0][1])
    a_global = [[0.0] * inputs for _ in range(rank)]
    b_global = [[0.0] * rank for _ in range(outputs)]
    for (a, b, scale), weight in zip(clients, weights, strict=True):
        for slot in range(rank):
            for i in range(inputs):
                a_global[slot][i] += weight * a[slot][i] / total
            for o in range(outputs):
                b_global[o][slot] += weight * scale * b[o][slot] / total
    return a_global, b_global
