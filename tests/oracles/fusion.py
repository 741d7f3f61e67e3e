"""Three ways to fuse two adapters, in plain Python floats, written from the published formulas.

"exact": w_p s_p B_p A_p + w_g s_g B_g A_g. "lorahub": (w_p s_p B_p + w_g s_g B_g)(w_p A_p + w_g A_g), the scale in B.
"peft_linear": sqrt(w s) on each factor of each side, factors summed, then multiplied (weights >= 0 only).
"""

import math

Matrix = list[list[float]]
Side = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def exact(personal: Side, shared: Side, weights: tuple[float, float]) -> Matrix:
    """Return the weighted sum of the two updates, [O, I]."""
    (a_p, b_p, s_p), (a_g, b_g, s_g) = personal, shared
    return _sum(_times(weights[0] * s_p, _product(b_p, a_p)), _times(weights[1] * s_g, _product(b_g, a_g)))


def lorahub(personal: Side, shared: Side, weights: tuple[float, float]) -> Matrix:
    """Return the product of the weighted sums of factors, [O, I]; equal ranks."""
    (a_p, b_p, s_p), (a_g, b_g, s_g) = personal, shared
    a = _sum(_times(weights[0], a_p), _times(weights[1], a_g))
    b = _sum(_times(weights[0] * s_p, b_p), _times(weights[1] * s_g, b_g))
    return _product(b, a)


def peft_linear(personal: Side, shared: Side, weights: tuple[float, float]) -> Matrix:
    """Return what PEFT's "linear" combination stands for, [O, I]; equal ranks."""
    (a_p, b_p, s_p), (a_g, b_g, s_g) = personal, shared
    root_p, root_g = math.sqrt(weights[0] * s_p), math.sqrt(weights[1] * s_g)
    a = _sum(_times(root_p, a_p), _times(root_g, a_g))
    b = _sum(_times(root_p, b_p), _times(root_g, b_g))
    return _product(b, a)


def _product(b: Matrix, a: Matrix) -> Matrix:
    return [[sum(row[slot] * a[slot][i] for slot in range(len(a))) for i in range(len(a[0]))] for row in b]


def _times(factor: float, matrix: Matrix) -> Matrix:
    return [[factor * entry for entry in row] for row in matrix]


def _sum(left: Matrix, right: Matrix) -> Matrix:
    return [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)]
