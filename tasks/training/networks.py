"""Small networks of our own, for the set-ups of the papers: a multi-layer perceptron and a convolutional network.

They take the arguments and give the attributes that transformers' image classifiers do, so that the training loop
and the metrics know one kind of model. Published models come from transformers instead, see `models.py`.

Legend of dimensions: N examples, C channels, H height, W width, L labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CNN_CHANNELS = (32, 64)
"""Output channels of the two convolutions."""


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """What a forward pass gives.

    Args:
        logits: [N, L].
        loss: Mean cross-entropy over the examples, None without labels.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Mlp(nn.Module):
    """Flatten, then linear layers with biases and ReLU between them; modules are named `layers.0`, `layers.1`, ...

    Args:
        input_shape: (C, H, W) of one example.
        hidden_sizes: Width of each hidden layer.
        num_labels: Number of classes, L.
    """

    def __init__(self, input_shape: Sequence[int], hidden_sizes: Sequence[int], num_labels: int) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *hidden_sizes, num_labels]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> NetworkOutput:
        """Classify images.

        Args:
            pixel_values: [N, C, H, W].
            labels: [N], class of each image.

        Returns:
            Logits, and the loss where labels were given.
        """
        return _classify(pixel_values.flatten(1), self.layers, labels)


class Cnn(nn.Module):
    """Two 3x3 convolutions, each with ReLU and 2x2 max-pooling, then two linear layers: `convs.0`, ... `layers.1`.

    Args:
        input_shape: (C, H, W) of one example; H and W at least 4.
        hidden_size: Width of the layer between the convolutions and the classes.
        num_labels: Number of classes, L.
    """

    def __init__(self, input_shape: Sequence[int], hidden_size: int, num_labels: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        sizes = [channels, *CNN_CHANNELS]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, kernel_size=3, padding=1) for i, o in pairwise(sizes))
        flat = CNN_CHANNELS[-1] * (height // 4) * (width // 4)
        self.layers = nn.ModuleList([nn.Linear(flat, hidden_size), nn.Linear(hidden_size, num_labels)])

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> NetworkOutput:
        """Classify images.

        Args:
            pixel_values: [N, C, H, W].
            labels: [N], class of each image.

        Returns:
            Logits, and the loss where labels were given.
        """
        hidden = pixel_values
        for conv in self.convs:
            hidden = functional.max_pool2d(functional.relu(conv(hidden)), 2)
        return _classify(hidden.flatten(1), self.layers, labels)


def _classify(hidden: torch.Tensor, layers: nn.ModuleList, labels: torch.Tensor | None) -> NetworkOutput:
    *inner, last = layers
    for layer in inner:
        hidden = functional.relu(layer(hidden))
    logits = last(hidden)
    return NetworkOutput(logits, None if labels is None else functional.cross_entropy(logits, labels))


def draw_parameters(network: nn.Module, seed: int) -> None:
    """Fill every linear and convolutional layer with weights that are the same on every machine.

    The distribution is torch's default for these layers, uniform within 1 / sqrt(fan-in), for weights and biases. The
    draws are NumPy's uniform doubles, exact arithmetic on the generator's bits: torch's own vary with its version and
    vector unit, and then two sites would hold different base models.

    Args:
        network: The network to fill, in place; any floating dtype.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    draw_uniform(parameter, bound, rng)


def draw_uniform(parameter: torch.Tensor, bound: float, rng: np.random.Generator) -> None:
    """Fill one tensor, in place, with uniform draws from [-bound, bound).

    Args:
        parameter: The tensor to fill.
        bound: Half the width of the interval.
        rng: Where the draws come from; advanced by one double per entry.
    """
    drawn = (rng.random(tuple(parameter.shape)) * 2 - 1) * bound
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(drawn))
