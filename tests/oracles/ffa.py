"""FFA in plain Python floats, from the published rule: one frozen A, the weighted mean of B padded with zeros."""

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def ffa(clients: list[Client], weights: list[float]) -> tuple[Matrix, Matrix]:
    """Return the global (A, B), the scale folded into B; every A is the first rows of the longest one."""
    longest = max((a for a, _, _ in clients), key=len)
    total = sum(weights)
    b_global = [[0.0] * len(longest) for _ in clients[0][1]]
    for (a, b, scale), weight in zip(clients, weights, strict=True):
        for o, row in enumerate(b):
            for slot in range(len(a)):
                b_global[o][slot] += weight / total * scale * row[slot]
    return [list(row) for row in longest], b_global
