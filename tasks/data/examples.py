"""What a data set is once it is ready for a model: numbered examples that come out in batches.

A batch is a dict of tensors whose keys are the arguments of the model's `forward`: `pixel_values` and `labels` for
images, `input_ids`, `attention_mask` and `labels` for text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


class Examples(Protocol):
    """A set of numbered examples."""

    def __len__(self) -> int:
        """Return how many examples there are."""
        ...

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the examples at these positions, ready for `model(**batch)`."""
        ...


@dataclass(frozen=True, eq=False)
class TensorExamples:
    """Examples of equal shape, held as tensors whose first dimension counts examples.

    Args:
        tensors: Model argument -> tensor [N, ...].
    """

    tensors: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the examples at these positions."""
        picked = torch.as_tensor(indices, dtype=torch.long)
        return {name: tensor[picked] for name, tensor in self.tensors.items()}


@dataclass(frozen=True, eq=False)
class TokenExamples:
    """Token sequences of unequal length, padded to the longest of each batch.

    Args:
        input_ids: One sequence of token ids per example.
        labels: One int per example (classification), or one sequence per example aligned with `input_ids`, in which
            -100 marks tokens without loss (causal language modelling).
        pad_id: Token id that fills up a batch; masked from attention.
    """

    input_ids: Sequence[Sequence[int]]
    labels: Sequence[int] | Sequence[Sequence[int]]
    pad_id: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the examples at these positions, padded on the right."""
        rows = [torch.as_tensor(self.input_ids[i], dtype=torch.long) for i in indices]
        labels = [torch.as_tensor(self.labels[i], dtype=torch.long) for i in indices]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        return {
            "input_ids": pad(rows, batch_first=True, padding_value=self.pad_id),
            "attention_mask": mask,
            "labels": torch.stack(labels) if labels[0].ndim == 0 else pad(labels, batch_first=True, padding_value=-100),
        }
