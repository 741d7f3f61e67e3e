"""The LoRA pairs of an adapted model as the tensors it trains: what penalties read and masks write.

The only place in this package that knows where PEFT keeps them; adapters as values are in `tasks.adapters`.

Legend of dimensions: R rank, I inputs (flattened), O outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn


@dataclass(frozen=True, eq=False)
class ModelPair:
    """One module's factors inside a model, of whatever kind of layer.

    Args:
        path: Module path in the base model, as adapters have it.
        a: The parameter whose first dimension is the slots.
        b: The parameter whose second dimension is the slots.
        scaling: What the layer multiplies the product with.
        reader: The module that reads `a` when it computes.
        attribute: The attribute it reads `a` by.
    """

    path: str
    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    reader: nn.Module = field(repr=False)
    attribute: str

    @property
    def rank(self) -> int:
        """Number of slots, R."""
        return len(self.a)

    @property
    def a_slots(self) -> torch.Tensor:
        """Rows of `a` as [R, I], float32 or better, differentiable."""
        return wide(self.a).flatten(1)

    @property
    def b_slots(self) -> torch.Tensor:
        """Columns of `b` as [R, O], float32 or better, differentiable."""
        return wide(self.b).flatten(1).T


def lora_pairs(model: nn.Module) -> list[ModelPair]:
    """List a model's pairs in the order of its modules.

    Args:
        model: An adapted model, or any other, which has none.

    Returns:
        One per adapted module, sharing memory with the model.
    """
    network = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = ((path, module) for path, module in network.named_modules() if isinstance(module, LoraLayer))
    return [pair for path, layer in layers for pair in _pairs_of(path, layer)]


def _pairs_of(path: str, layer: LoraLayer) -> Iterator[ModelPair]:
    for name, scaling in layer.scaling.items():
        if name in layer.lora_embedding_A:
            reader, attribute, b = layer.lora_embedding_A, name, layer.lora_embedding_B[name]
        elif name in layer.lora_A:
            reader, attribute, b = layer.lora_A[name], "weight", layer.lora_B[name].get_parameter("weight")
        else:
            continue
        yield ModelPair(path, reader.get_parameter(attribute), b, scaling, reader, attribute)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as float32 or better, differentiable; the tensor itself where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
