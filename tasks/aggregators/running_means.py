"""Weighted running means of one module's factors, and of one dense tensor.

Legend: R rank, I inputs, O outputs. Slot r of a module is row r of `a: [R, I]` with column r of `b: [O, R]`.
A client of rank R owns slots 0..R-1, so the slots nobody has owned yet are always the last ones.

A mean moves towards each newcomer by the newcomer's share of the weight so far, x += (w / W) (new - x): identical
inputs stay bit for bit what they are, which a sum divided at the end does not give. Whole adapters: `slot_means`.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from tasks.adapters.lora import LayerForm, LoraPair, layer_text, refuse_misfit


@dataclass
class ModuleMean:
    """One module's mean over the clients that trained it.

    Args:
        a: [R, I], float32 or float64.
        b: [O, R], same dtype, scale folded in.
        weights: [R], weight seen per slot, float64; never rising with the slot.
        form: How PEFT stores the pair.
        dtype: What the result is handed out in.
        ranks: Ranks seen.
    """

    a: torch.Tensor
    b: torch.Tensor
    weights: np.ndarray
    form: LayerForm
    dtype: torch.dtype
    ranks: frozenset[int]


@dataclass
class DenseMean:
    """One dense tensor's mean, or its maximum if it counts something.

    Args:
        value: Any shape; float32 or float64 for means, the clients' own dtype for counters.
        weight: Weight seen.
        dtype: What the result is handed out in.
    """

    value: torch.Tensor
    weight: float
    dtype: torch.dtype


def lend_module(pair: LoraPair, weight: float) -> ModuleMean:
    """See a client's pair as the mean of one client; may share its memory, so it must not be written to.

    Args:
        pair: Any scaling and float dtype.
        weight: The client's weight.

    Returns:
        The mean of this client alone; the scale is folded in after widening, so that it costs no rounding in bf16.
    """
    dtype = torch.promote_types(pair.a.dtype, pair.b.dtype)
    wide = _accumulator(dtype)
    b = _cast(pair.b, wide)
    if pair.scaling != 1.0:
        b = b * pair.scaling
    weights = np.full(pair.rank, weight)
    return ModuleMean(_cast(pair.a, wide), b, weights, pair.form, dtype, frozenset((pair.rank,)))


def lend_dense(tensor: torch.Tensor, weight: float) -> DenseMean:
    """See a client's dense tensor as the mean of one client; may share its memory, so it must not be written to.

    Args:
        tensor: Floating point, or integers that count.
        weight: The client's weight.
    """
    wide = _accumulator(tensor.dtype) if tensor.is_floating_point() else tensor.dtype
    return DenseMean(tensor.to(wide), weight, tensor.dtype)


def own_module(mean: ModuleMean) -> ModuleMean:
    """Copy a lent mean, so that it may be written to."""
    return replace(mean, a=_copy(mean.a), b=_copy(mean.b), weights=mean.weights.copy())


def own_dense(mean: DenseMean) -> DenseMean:
    """Copy a lent mean, so that it may be written to."""
    return replace(mean, value=_copy(mean.value))


def check_modules_fit(new: ModuleMean, mean: ModuleMean, subject: str) -> None:
    """Raise unless two means are of one layer; ranks may differ.

    Args:
        new: The newcomer.
        mean: What it is to join.
        subject: Whom to name.

    Raises:
        AdapterShapeError: Layer kinds, inner or outer sizes differ.
    """
    if new.form != mean.form or new.b.shape[0] != mean.b.shape[0]:
        refuse_misfit(subject, layer_text(new.form, new.b.shape[0]), layer_text(mean.form, mean.b.shape[0]))


def check_dense_fit(new: DenseMean, mean: DenseMean, subject: str) -> None:
    """Raise unless two means are of one tensor.

    Args:
        new: The newcomer.
        mean: What it is to join.
        subject: Whom to name.

    Raises:
        AdapterShapeError: Shapes differ, or one is a counter and the other is not.
    """
    is_float = new.dtype.is_floating_point
    if new.value.shape != mean.value.shape or is_float != mean.dtype.is_floating_point:
        refuse_misfit(subject, _dense_text(new), _dense_text(mean))


def join_module(mean: ModuleMean, new: ModuleMean) -> None:
    """Move a mean towards another one, slot by slot; slots only the other has are taken over.

    Args:
        mean: Written to; grows to the larger rank.
        new: Only read.
    """
    mean.dtype = torch.promote_types(mean.dtype, new.dtype)
    wide = _accumulator(mean.dtype)
    mean.a, mean.b = _cast(mean.a, wide), _cast(mean.b, wide)
    new_a, new_b = _cast(new.a, wide), _cast(new.b, wide)
    shared = min(len(mean.weights), len(new.weights))
    share = new.weights[:shared] / (mean.weights[:shared] + new.weights[:shared])
    coefficient = torch.from_numpy(share).to(wide)
    if len(new.weights) > len(mean.weights):
        mean.a, mean.b = with_tail(mean.a, new_a, dim=0), with_tail(mean.b, new_b, dim=1)
        mean.weights = np.concatenate([mean.weights, np.zeros(len(new.weights) - shared)])
    mean.a.narrow(0, 0, shared).lerp_(new_a.narrow(0, 0, shared), coefficient.unsqueeze(1))
    mean.b.narrow(1, 0, shared).lerp_(new_b.narrow(1, 0, shared), coefficient)
    mean.weights[: len(new.weights)] += new.weights
    mean.ranks |= new.ranks


def join_dense(mean: DenseMean, new: DenseMean) -> None:
    """Move a dense mean towards another one; counters take the larger value.

    Args:
        mean: Written to.
        new: Only read.
    """
    mean.dtype = torch.promote_types(mean.dtype, new.dtype)
    if mean.dtype.is_floating_point:
        wide = _accumulator(mean.dtype)
        mean.value = mean.value.to(wide).lerp_(new.value.to(wide), new.weight / (mean.weight + new.weight))
    else:
        mean.value = torch.maximum(mean.value, new.value)
    mean.weight += new.weight


def with_tail(head: torch.Tensor, longer: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Lengthen a factor with the last slots of a longer one.

    Args:
        head: [R, I] or [O, R]; its slots come first.
        longer: The same with more slots.
        dim: The slots' dimension: 0 for `a`, 1 for `b`.

    Returns:
        A new tensor in `head`'s dtype with as many slots as `longer`.
    """
    grown = longer.to(head.dtype, copy=True, memory_format=torch.contiguous_format)
    grown.narrow(dim, 0, head.shape[dim]).copy_(head)
    return grown


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Asking a tensor for the dtype it has costs as much as averaging a small factor.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _dense_text(mean: DenseMean) -> str:
    return f"{mean.dtype} of shape {list(mean.value.shape)}"
