"""Fed-SB in numpy, from the published rule: frozen A and B0, the mean of the square matrices between them.

Entry by entry over the clients that hold it, which is the plain mean where ranks are equal. B0 is made as the method's
file says, from the signs of the first row of A, but with a factorisation in place of Gram-Schmidt.
"""

import hashlib

import numpy as np

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def frozen(a: Matrix, outputs: int) -> np.ndarray:
    """Return B0 [O, R]."""
    signs = np.packbits(np.signbit(np.array(a[0])))
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(signs.tobytes()).digest()[:8], "big"))
    drawn = rng.standard_normal((min(len(a), outputs), outputs)).T
    q, r = np.linalg.qr(drawn)
    basis = np.zeros((outputs, len(a)))
    basis[:, : q.shape[1]] = q * np.sign(np.diag(r))
    return basis


def fed_sb(clients: list[Client], weights: list[float]) -> np.ndarray:
    """Return the global product [O, I]."""
    longest, outputs = max((a for a, _, _ in clients), key=len), len(clients[0][1])
    cores = [scale * frozen(a, outputs).T @ np.array(b) for a, b, scale in clients]
    mean = np.zeros((len(longest), len(longest)))
    for i in range(len(longest)):
        for j in range(len(longest)):
            holders = [(core, w) for core, w in zip(cores, weights, strict=True) if max(i, j) < len(core)]
            mean[i, j] = sum(w * core[i, j] for core, w in holders) / sum(w for _, w in holders)
    return frozen(longest, outputs) @ mean @ np.array(longest)
