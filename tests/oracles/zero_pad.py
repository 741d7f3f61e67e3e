"""Zero-padding in plain Python floats, written from the published rule: pad with zeros to the largest rank, average."""

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def zero_pad(clients: list[Client], weights: list[float]) -> tuple[Matrix, Matrix]:
    """Return the global (A, B), the scale folded into B."""
    rank = max(len(a) for a, _, _ in clients)
    inputs, outputs = len(clients[0][0][0]), len(clients[0][1])
    total = sum(weights)
    a_global = [[0.0] * inputs for _ in range(rank)]
    b_global = [[0.0] * rank for _ in range(outputs)]
    for (a, b, scale), weight in zip(clients, weights, strict=True):
        padded_a = [*a, *([0.0] * inputs for _ in range(rank - len(a)))]
        padded_b = [[*row, *([0.0] * (rank - len(a)))] for row in b]
        for slot in range(rank):
            for i in range(inputs):
                a_global[slot][i] += weight / total * padded_a[slot][i]
            for o in range(outputs):
                b_global[o][slot] += weight / total * scale * padded_b[o][slot]
    return a_global, b_global
