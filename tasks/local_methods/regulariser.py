"""Penalties that keep the slots of a module apart: two forms, and their mean over a model's matrices."""

from dataclasses import dataclass
from typing import Literal

import torch

from tasks.local_methods.pairs import ModelPair

# Keeps the root differentiable where slots are exactly orthogonal; far below any length worth training.
_EPSILON = 1e-12
# A slot this short has no direction to speak of, and the gradient of its direction would be enormous.
_SHORT = 1e-4


@dataclass(frozen=True)
class Regulariser:
    """What keeps slots apart.

    Args:
        strength: Factor of the penalty.
        form: Name of the form.
        target_norm: Length that the orthogonal form wants of a slot; 0 for 1 / sqrt(scaling), so that a module whose
            slots all have it makes an update of spectral norm 1.
    """

    strength: float
    form: Literal["orthogonal", "cosine"]
    target_norm: float

    def penalty(self, pairs: list[ModelPair]) -> torch.Tensor | None:
        """Return the strength times the mean over matrices, or None where there is none to take it of.

        Args:
            pairs: Of the model; each is two matrices.
        """
        terms = [term for pair in pairs for term in self._terms(pair)] if self.strength else []
        return self.strength * torch.stack(terms).mean() if terms else None

    def _terms(self, pair: ModelPair) -> list[torch.Tensor]:
        matrices = [pair.a_slots, pair.b_slots]
        if self.form == "orthogonal":
            norm = self.target_norm or pair.scaling**-0.5
            return [orthogonality(slots, norm) for slots in matrices]
        # One slot has nothing to be at an angle with: the published mean over pairs of slots would be 0/0.
        return [mean_cosine(slots) for slots in matrices] if pair.rank > 1 else []


def orthogonality(slots: torch.Tensor, norm: float) -> torch.Tensor:
    r"""Measure how far slots are from orthogonal and of one length: $\|S S^T - t^2 I\|_F$, not squared.

    Args:
        slots: [R, N].
        norm: The length t.

    Returns:
        Scalar, differentiable everywhere; at least $\sqrt{R - N} t^2$ where R > N.
    """
    gram = slots @ slots.T
    wanted = norm**2 * torch.eye(len(slots), dtype=slots.dtype, device=slots.device)
    return torch.sqrt((gram - wanted).square().sum() + _EPSILON)


def mean_cosine(slots: torch.Tensor) -> torch.Tensor:
    """Measure how parallel slots are: the mean absolute cosine between two of them.

    Args:
        slots: [R, N], R at least 2.

    Returns:
        Scalar in [0, 1], whatever the slots' lengths; one of next to no length (1e-4) counts as orthogonal to all.
    """
    lengths = torch.linalg.vector_norm(slots, dim=1, keepdim=True)
    has_direction = lengths > _SHORT
    directions = torch.where(has_direction, slots / torch.where(has_direction, lengths, 1.0), 0.0)
    cosines = (directions @ directions.T).abs()
    return (cosines.sum() - cosines.diagonal().sum()) / (len(slots) ** 2 - len(slots))
