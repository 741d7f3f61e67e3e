"""How far a client moved, and the bound on it: one norm over everything it trained.

Legend: R rank, I inputs, O outputs. Differences are float64; a client of lower rank is zero in the slots it lacks, so
nothing has to be padded: its differences lie at the front of the global adapter's tensors.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, layer_text, refuse_misfit

Factors = Literal["both", "a", "b"]
Key = tuple[str, str]
"""Module path and "a" or "b", or a tensor's name and "dense"."""


def shared_tensors(adapter: LoraAdapter, factors: Factors) -> dict[Key, tuple[torch.Tensor, float]]:
    """List what clients train and send, in one order for everyone.

    Args:
        adapter: Any adapter.
        factors: The factors that cross the link.

    Returns:
        Key -> the adapter's own tensor, and the scale to fold into it. Dense tensors of whole numbers (counters) are
        left out: no noise can hide them.
    """
    found: dict[Key, tuple[torch.Tensor, float]] = {}
    for path, pair in adapter.pairs.items():
        if factors != "b":
            found[path, "a"] = pair.a, 1.0
        if factors != "a":
            found[path, "b"] = pair.b, pair.scaling
    floats = {name: tensor for name, tensor in adapter.dense.items() if tensor.is_floating_point()}
    return found | {(name, "dense"): (tensor, 1.0) for name, tensor in floats.items()}


def differences(
    update: LoraAdapter, previous: LoraAdapter, factors: Factors, *, subject: str
) -> dict[Key, torch.Tensor]:
    """Subtract from an update the share of the global adapter that its client was sent.

    Args:
        update: Modules and tensors of the previous adapter, at its ranks or lower; any scaling; never written to.
        previous: The global adapter clients started from; a share of it is its first slots.
        factors: The factors that cross the link; the other one has no difference, whatever the update holds.
        subject: Whom an error names.

    Returns:
        Key -> float64 of the update's shape, scaling folded; what the update lacks is left out.

    Raises:
        NonFiniteUpdateError: A value is NaN or infinite.
        AdapterShapeError: A module or tensor is not in the previous adapter, of another layer, or of a larger rank.
    """
    check_finite(update, subject)
    _check_part(update, previous, subject)
    before = shared_tensors(previous, factors)
    return {
        key: _wide(tensor, scale) - _wide(_front(before[key][0], tensor.shape), before[key][1])
        for key, (tensor, scale) in shared_tensors(update, factors).items()
    }


def joint_norm(tensors: Iterable[torch.Tensor]) -> float:
    """Return the 2-norm of all tensors together; a sum in one thread, so its bits are the same everywhere.

    Args:
        tensors: Float64, any shapes.

    Returns:
        0 or more; infinity where squares overflow, which clips to nothing.
    """
    with np.errstate(over="ignore"):
        # NumPy sums along memory, so memory has to be laid out in one way.
        return math.sqrt(math.fsum(float(np.square(tensor.contiguous().numpy()).sum()) for tensor in tensors))


def clip_factor(norm: float, clip_norm: float) -> float:
    r"""Return what to multiply by so that a norm stays within bounds, $\min(1, S/\|\delta\|)$.

    Args:
        norm: What was moved, 0 or more.
        clip_norm: The bound S, above 0; infinity clips nothing.
    """
    return 1.0 if norm <= clip_norm else clip_norm / norm


def _wide(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    wide = tensor.detach().to(torch.float64)
    return wide if scale == 1.0 else wide * scale


def _front(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return tensor[tuple(slice(size) for size in shape)]


def _check_part(update: LoraAdapter, previous: LoraAdapter, subject: str) -> None:
    for path, pair in update.pairs.items():
        old = previous.pairs.get(path)
        if old is None or not _is_part(pair, old):
            refuse_misfit(f"{subject}, module {path}", _pair_text(pair), "nothing" if old is None else _pair_text(old))
    for name, tensor in update.dense.items():
        _check_dense(tensor, previous.dense, f"{subject}, tensor {name}", name)


def _is_part(pair: LoraPair, old: LoraPair) -> bool:
    return pair.form == old.form and len(pair.b) == len(old.b) and 1 <= pair.rank <= old.rank


def _pair_text(pair: LoraPair) -> str:
    return f"{layer_text(pair.form, len(pair.b))}, R {pair.rank}"


def _check_dense(tensor: torch.Tensor, dense: Mapping[str, torch.Tensor], subject: str, name: str) -> None:
    old = dense.get(name)
    if old is None or old.shape != tensor.shape or old.is_floating_point() != tensor.is_floating_point():
        refuse_misfit(subject, _tensor_text(tensor), "nothing" if old is None else _tensor_text(old))


def _tensor_text(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} of shape {list(tensor.shape)}"
