"""FLoRA in plain Python floats, written from what it is to reproduce: the weighted sum of the clients' products."""

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def flora_stack(clients: list[Client], weights: list[float]) -> Matrix:
    """Return what a round adds to the product [O, I]."""
    total = sum(weights)
    inputs, outputs = len(clients[0][0][0]), len(clients[0][1])
    result = [[0.0] * inputs for _ in range(outputs)]
    for (a, b, scale), weight in zip(clients, weights, strict=True):
        for o in range(outputs):
            for i in range(inputs):
                entry = sum(b[o][slot] * a[slot][i] for slot in range(len(a)))
                result[o][i] += weight / total * scale * entry
    return result
