"""FedEx-LoRA in numpy, written from the published rule: means of factors, and the residual of the product of means."""

import numpy as np

Matrix = list[list[float]]
Client = tuple[Matrix, Matrix, float]  # A as R rows of I, B as O rows of R, scale


def fedex(clients: list[Client], weights: list[float]) -> np.ndarray:
    """Return the product of what clients train on and what was added to their base [O, I]; all of one rank."""
    a_mean, b_mean = means(clients, weights)
    return b_mean @ a_mean + residual(clients, weights)


def residual(clients: list[Client], weights: list[float]) -> np.ndarray:
    """Return the mean of products less the product of means [O, I]."""
    total = sum(weights)
    mean = sum(w / total * s * np.array(b) @ np.array(a) for (a, b, s), w in zip(clients, weights, strict=True))
    a_mean, b_mean = means(clients, weights)
    return np.asarray(mean) - b_mean @ a_mean


def means(clients: list[Client], weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean A [R, I] and B [O, R], the scale folded into B."""
    total = sum(weights)
    a_mean = sum(w / total * np.array(a) for (a, _, _), w in zip(clients, weights, strict=True))
    b_mean = sum(w / total * s * np.array(b) for (_, b, s), w in zip(clients, weights, strict=True))
    return np.asarray(a_mean), np.asarray(b_mean)
