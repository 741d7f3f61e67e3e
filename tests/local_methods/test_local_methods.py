import pytest
import torch
from torch import nn

from tasks.errors import UnknownNameError
from tasks.local_methods.table import LOCAL_METHODS, local_method


@pytest.fixture
def model() -> nn.Module:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
    network.weight.grad = torch.full((2, 3), 0.5)
    return network


def test_lora_leaves_loss_gradients_and_parameters_as_they_are(model):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    method = local_method("lora")
    method.start(model)
    assert method.penalty(model) is None
    method.after_backward(model, 1)
    method.after_step(model, 1)
    assert torch.equal(model.weight.grad, torch.full((2, 3), 0.5))
    assert model.bias.grad is None
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", LOCAL_METHODS)
def test_every_lookup_makes_a_method_of_its_own(name):
    assert local_method(name) is not local_method(name)


@pytest.mark.parametrize("name", LOCAL_METHODS)
def test_every_method_has_all_hooks_and_a_penalty_that_can_be_added(name, model):
    method = local_method(name)
    method.start(model)
    penalty = method.penalty(model)
    assert penalty is None or penalty.ndim == 0
    method.after_backward(model, 1)
    method.after_step(model, 1)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="lora"):
        local_method("lorra")
