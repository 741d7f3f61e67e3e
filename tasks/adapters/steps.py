"""Steps between adapters of one shape, number by number: what codecs send and lazy clients repeat.

A step is held in an adapter of the same shape, factor for factor: it is not the difference of two products, for which
see `products.py`. Both ends of a link compute the same bits from the same numbers.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from tasks.adapters.lora import LoraAdapter, fold_scaling, refuse_misfit
from tasks.adapters.peft_files import to_state_dict

_Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def step_between(before: LoraAdapter, after: LoraAdapter) -> LoraAdapter:
    """Return what has to be added to one adapter's numbers to reach another's.

    Args:
        before: Any adapter; its scaling is folded.
        after: One of the same modules, ranks and tensors.

    Returns:
        Differences of floating tensors; counters stand as `after` has them.

    Raises:
        AdapterShapeError: The two have not one shape.
    """
    return _by_number(after, before, torch.sub)


def advanced(adapter: LoraAdapter, step: LoraAdapter) -> LoraAdapter:
    """Add a step to an adapter's numbers.

    Args:
        adapter: Any adapter; its scaling is folded.
        step: As `step_between` returns it.

    Returns:
        The sum; counters as the step has them.

    Raises:
        AdapterShapeError: The two have not one shape.
    """
    return _by_number(step, adapter, lambda added, before: before + added)


def squared_length(step: LoraAdapter) -> float:
    """Return the sum of the squares of all floating numbers, in float64."""
    tensors = (t for t in to_state_dict(fold_scaling(step)).values() if t.is_floating_point())
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


def same_shape(one: LoraAdapter, other: LoraAdapter) -> bool:
    """Tell whether two adapters have the same modules, ranks, layers and tensors."""
    return _shape(one) == _shape(other)


def _shape(adapter: LoraAdapter) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in to_state_dict(adapter).items()}


def _by_number(main: LoraAdapter, other: LoraAdapter, operation: _Operation) -> LoraAdapter:
    if not same_shape(main, other):
        refuse_misfit("step", _shape(other), _shape(main))
    main, other = fold_scaling(main), fold_scaling(other)
    pairs = {
        path: replace(pair, a=operation(pair.a, other.pairs[path].a), b=operation(pair.b, other.pairs[path].b))
        for path, pair in main.pairs.items()
    }
    dense = {
        name: operation(tensor, other.dense[name]) if tensor.is_floating_point() else tensor
        for name, tensor in main.dense.items()
    }
    return LoraAdapter(pairs, dense)
