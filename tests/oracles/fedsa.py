"""FedSA in plain Python floats, from the published rule: rows of A averaged over their owners, B left at home."""

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def fedsa(clients: list[Client], weights: list[float]) -> tuple[Matrix, Matrix]:
    """Return the global A, and the zeros that stand for B where there was no global adapter before."""
    rank = max(len(a) for a, _, _ in clients)
    a_global = []
    for slot in range(rank):
        owners = [(a[slot], weight) for (a, _, _), weight in zip(clients, weights, strict=True) if slot < len(a)]
        total = sum(weight for _, weight in owners)
        a_global.append([sum(w * row[i] for row, w in owners) / total for i in range(len(clients[0][0][0]))])
    return a_global, [[0.0] * rank for _ in clients[0][1]]
