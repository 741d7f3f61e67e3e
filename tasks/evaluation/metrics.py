"""Metrics of a model on held-out examples: classification by its classes, language models by their tokens.

What is measured where, and what a metric decides, is the flows' business.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional

from tasks.data.examples import Examples
from tasks.errors import DataError

HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "macro_f1": True,
    "token_accuracy": True,
    "loss": False,
    "perplexity": False,
}
"""Which way each metric is better."""

IGNORED = -100
"""The label that marks tokens without loss, as in transformers."""


def evaluate(
    model: nn.Module,
    examples: Examples,
    *,
    batch_size: int,
    indices: np.ndarray | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Measure a model, whatever the batch size: every example (or token) counts once.

    Args:
        model: Gives `logits` [N, L] (classification) or [N, T, V] (causal language model); moved to the device, its
            mode restored at the end.
        examples: Where batches come from.
        batch_size: Examples per forward pass.
        indices: [N] positions to measure on; all if None.
        device: Where to run it.

    Returns:
        Classification: "accuracy", "macro_f1" (over the classes that occur or are predicted), "loss" (mean over
        examples). Causal language model: "loss" (mean over tokens that bear loss), "perplexity", "token_accuracy".

    Raises:
        DataError: No examples, or no token that bears loss.
    """
    tally = _run(model, examples, _positions(examples, indices), batch_size=batch_size, device=device)
    loss, hits = tally.loss / len(tally.labels), float(np.mean(tally.labels == tally.predicted))
    if tally.is_causal:
        # Beyond this the exponential overflows; such a model has no perplexity to speak of.
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"loss": loss, "perplexity": perplexity, "token_accuracy": hits}
    macro_f1 = float(f1_score(tally.labels, tally.predicted, average="macro"))
    return {"accuracy": hits, "macro_f1": macro_f1, "loss": loss}


def per_class_accuracy(
    model: nn.Module,
    examples: Examples,
    *,
    batch_size: int,
    indices: np.ndarray | None = None,
    device: str = "cpu",
) -> dict[int, float]:
    """Measure, class by class, how many of its examples a classifier gets right (its recall).

    Args:
        model: Gives `logits` [N, L].
        examples: Where batches come from.
        batch_size: Examples per forward pass.
        indices: [N] positions to measure on; all if None.
        device: Where to run it.

    Returns:
        Class -> accuracy, for the classes that occur.

    Raises:
        DataError: No examples.
    """
    tally = _run(model, examples, _positions(examples, indices), batch_size=batch_size, device=device)
    hits = tally.labels == tally.predicted
    return {int(label): float(hits[tally.labels == label].mean()) for label in np.unique(tally.labels)}


@dataclass(frozen=True, eq=False)
class _Tally:
    labels: np.ndarray
    predicted: np.ndarray
    loss: float
    is_causal: bool


@dataclass(eq=False)
class _Parts:
    labels: list[np.ndarray] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    is_causal: bool = False

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.is_causal = logits.ndim == 3
        if self.is_causal:
            # Position t predicts token t + 1.
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
        self.losses.append(float(functional.cross_entropy(logits.float(), labels, reduction="sum")))
        self.labels.append(labels.cpu().numpy())
        self.predicted.append(logits.argmax(-1).cpu().numpy())


def _run(model: nn.Module, examples: Examples, positions: np.ndarray, *, batch_size: int, device: str) -> _Tally:
    model.to(device)
    was_training = model.training
    model.eval()
    parts = _Parts()
    try:
        with torch.inference_mode():
            for batch in _batches(examples, positions, batch_size):
                arguments = {name: tensor.to(device) for name, tensor in batch.items()}
                labels = arguments.pop("labels")
                parts.add(model(**arguments).logits, labels)
    finally:
        model.train(was_training)
    labels = np.concatenate(parts.labels)
    if not len(labels):
        raise DataError("evaluation", "no token bears loss", remedy="raise data.max_length, or shorten the prompts")
    return _Tally(labels, np.concatenate(parts.predicted), math.fsum(parts.losses), parts.is_causal)


def _positions(examples: Examples, indices: np.ndarray | None) -> np.ndarray:
    positions = np.arange(len(examples)) if indices is None else np.asarray(indices)
    if not len(positions):
        raise DataError("evaluation", "there are no examples", remedy="check data.test_fraction and data.limit")
    return positions


def _batches(examples: Examples, positions: np.ndarray, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(positions), batch_size):
        yield examples.batch(positions[start : start + batch_size])
