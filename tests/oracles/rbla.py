"""RBLA in plain Python floats, written from the published rule: slot j is averaged over clients with rank above j."""

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def rbla(clients: list[Client], weights: list[float]) -> tuple[Matrix, Matrix]:
    """Return the global (A, B), the scale folded into B."""
    rank = max(len(a) for a, _, _ in clients)
    inputs, outputs = len(clients[0][0][0]), len(clients[0][1])
    a_global = [[0.0] * inputs for _ in range(rank)]
    b_global = [[0.0] * rank for _ in range(outputs)]
    for slot in range(rank):
        owned_weight = 0.0
        for (a, _, _), weight in zip(clients, weights, strict=True):
            if slot < len(a):
                owned_weight += weight
        for (a, b, scale), weight in zip(clients, weights, strict=True):
            if slot >= len(a):
                continue
            for i in range(inputs):
                a_global[slot][i] += weight * a[slot][i] / owned_weight
            for o in range(outputs):
                b_global[o][slot] += weight * scale * b[o][slot] / owned_weight
    return a_global, b_global
