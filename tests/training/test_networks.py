import math

import pytest
import torch
from torch.nn import functional

from tasks.training.networks import Cnn, Mlp, draw_parameters

NETWORKS = {"mlp": lambda: Mlp((1, 8, 8), (24, 16), 3), "cnn": lambda: Cnn((2, 9, 8), 24, 3)}
IMAGES = {"mlp": torch.ones(5, 1, 8, 8), "cnn": torch.ones(5, 2, 9, 8)}


@pytest.fixture(params=NETWORKS)
def name(request) -> str:
    return request.param


def test_forward_gives_logits_and_the_mean_loss(name):
    network, labels = NETWORKS[name](), torch.tensor([0, 1, 2, 0, 1])
    output = network(IMAGES[name], labels)
    assert output.logits.shape == (5, 3)
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))
    assert network(IMAGES[name]).loss is None


def test_module_names_are_what_adapters_are_keyed_by():
    linear = [path for path, m in NETWORKS["mlp"]().named_modules() if isinstance(m, torch.nn.Linear)]
    assert linear == ["layers.0", "layers.1", "layers.2"]
    layers = [path for path, m in NETWORKS["cnn"]().named_modules() if hasattr(m, "weight")]
    assert layers == ["convs.0", "convs.1", "layers.0", "layers.1"]


def test_drawn_weights_fill_the_interval_of_their_fan_in(name):
    network = NETWORKS[name]()
    draw_parameters(network, seed=3)
    for module in network.modules():
        if hasattr(module, "weight"):
            bound = 1 / math.sqrt(module.weight[0].numel())
            largest = max(float(p.detach().abs().max()) for p in (module.weight, module.bias))
            assert 0.8 * bound < largest <= bound


def test_drawn_weights_follow_their_seed_alone(name):
    first, second, other = (NETWORKS[name]() for _ in range(3))
    for network, seed in ((first, 3), (second, 3), (other, 4)):
        draw_parameters(network, seed=seed)
    for path, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(path))
        assert not torch.equal(parameter, other.get_parameter(path))
