"""Inner products of adapters in plain Python floats: every update multiplied out, then compared entry by entry."""

import math

Matrix = list[list[float]]
Module = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def gram(clients: list[dict[str, Module]]) -> Matrix:
    """Return <dW_i, dW_j>, summed over the modules that both clients have."""
    updates = [{path: multiplied(*module) for path, module in client.items()} for client in clients]
    return [[sum(dot(x[path], y[path]) for path in x if path in y) for y in updates] for x in updates]


def cosine_distance(inner: Matrix) -> Matrix:
    """Return 1 - cos; no direction is at distance 1 from all others."""
    distances = [[0.0] * len(inner) for _ in inner]
    for i in range(len(inner)):
        for j in range(len(inner)):
            if i == j:
                continue
            scale = math.sqrt(inner[i][i]) * math.sqrt(inner[j][j])
            distances[i][j] = 1.0 - inner[i][j] / scale if scale > 0.0 else 1.0
    return distances


def multiplied(a: Matrix, b: Matrix, scale: float) -> Matrix:
    """Return scale * B A."""
    update = [[0.0] * len(a[0]) for _ in b]
    for o in range(len(b)):
        for i in range(len(a[0])):
            for slot in range(len(a)):
                update[o][i] += scale * b[o][slot] * a[slot][i]
    return update


def dot(x: Matrix, y: Matrix) -> float:
    """Return the sum of products of entries."""
    return sum(p * q for row_x, row_y in zip(x, y, strict=True) for p, q in zip(row_x, row_y, strict=True))
