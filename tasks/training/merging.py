"""Updates put into a base model's own weights, as methods do that start a round on a changed base.

The base model itself is never written to: the result shares every tensor that no update touches.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import dense_product
from tasks.errors import AdapterShapeError
from tasks.training.models import BaseModel
from tasks.training.targets import is_transposed


def merged(base: BaseModel, updates: Sequence[LoraAdapter]) -> BaseModel:
    """Add updates to the weights of the layers they adapt; one without pairs is a whole model and replaces them all.

    They are added one after the other in float64 and rounded once, so that whoever adds the same updates in the same
    order holds the same bits, whether it kept up round by round or caught up at once.

    Args:
        base: The base model.
        updates: Oldest first. Dense tensors count only where there are no pairs: then they take the place of the base
            model's tensors of their names, and what older updates made of those is gone.

    Returns:
        The base model itself where there is nothing to add; otherwise one with new weights for the adapted layers. Its
        digest still names the base it came from.

    Raises:
        AdapterShapeError: An update names a module or tensor that the base lacks, or whose weight has another size.
    """
    start = max((place for place, update in enumerate(updates) if update.dense and not update.pairs), default=-1)
    whole, updates = (updates[start].dense if start >= 0 else {}), updates[start + 1 :]
    paths = sorted({path for update in updates for path in update.pairs})
    if not paths and not whole:
        return base
    shared = {id(tensor): tensor for tensor in [*base.network.parameters(), *base.network.buffers()]}
    network = copy.deepcopy(base.network, shared)
    for name, tensor in whole.items():
        _replace(network, name, tensor)
    for path in paths:
        layer, weight = _layer(network, path)
        total = weight.detach().to(torch.float64)
        for update in updates:
            if path in update.pairs:
                total = total + _like_weight(layer, weight, dense_product(update.pairs[path]), path)
        layer.register_parameter("weight", nn.Parameter(total.to(weight.dtype), requires_grad=False))
    return replace(base, network=network)


def _replace(network: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    held = network.state_dict(keep_vars=True).get(name)
    if held is None or held.shape != tensor.shape:
        raise AdapterShapeError(
            f"tensor {name}",
            "a whole model does not fit the base model",
            got=f"shape {tuple(tensor.shape)}",
            expected="a tensor of it" if held is None else f"shape {tuple(held.shape)}",
        )
    own = tensor.to(held.dtype, copy=True)
    if isinstance(held, nn.Parameter):
        network.get_submodule(path).register_parameter(leaf, nn.Parameter(own, requires_grad=False))
    else:
        network.get_submodule(path).register_buffer(leaf, own)


def _layer(network: nn.Module, path: str) -> tuple[nn.Module, torch.Tensor]:
    try:
        return network.get_submodule(path), network.get_parameter(f"{path}.weight")
    except AttributeError as error:
        raise AdapterShapeError(f"module {path}", "is not in the base model", expected="a module of it") from error


def _like_weight(layer: nn.Module, weight: torch.Tensor, product: torch.Tensor, path: str) -> torch.Tensor:
    """Bring an update [O, I] into the shape in which its layer keeps the weight."""
    if isinstance(layer, nn.Embedding) or is_transposed(layer):
        product = product.T
    if tuple(product.shape) != (len(weight), weight[0].numel()):
        raise AdapterShapeError(
            f"module {path}",
            "an update does not fit the base model's weight",
            got=f"{list(product.shape)}",
            expected=[len(weight), weight[0].numel()],
        )
    return product.reshape(weight.shape)
