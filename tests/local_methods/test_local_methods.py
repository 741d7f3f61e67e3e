"""What every row of the table promises, and what the base class leaves alone."""

import pytest
import torch
from torch import nn

from tasks.errors import UnknownNameError
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.table import LOCAL_METHODS, local_method
from tasks.local_methods.together import Together

OCCASION = Occasion(seed=0, round_index=1)


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
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = local_method("lora").method(OCCASION)
    method.start(model)
    assert method.penalty(model, lambda: torch.zeros(())) is None
    method.before_step(model, optimizer, 1)
    method.after_step(model, optimizer, 1)
    assert method.kept_ranks(model, {"a": 3}) == {"a": 3}
    assert torch.equal(model.weight.grad, torch.full((2, 3), 0.5))
    assert model.bias.grad is None
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", LOCAL_METHODS)
def test_every_lookup_makes_a_method_of_its_own(name):
    row = local_method(name)
    assert row.name == name
    assert row.method(OCCASION) is not row.method(OCCASION)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="lora"):
        local_method("lorra")


class Adds(LocalMethod):
    """A penalty of one, and one slot less."""

    def penalty(self, model, loss_again):
        return loss_again() + 1.0

    def kept_ranks(self, model, ranks):
        return {path: rank - 1 for path, rank in ranks.items()}


def test_methods_together_add_their_penalties_and_keep_what_all_keep(model):
    both = Together(OCCASION, [Adds(OCCASION), LocalMethod(OCCASION), Adds(OCCASION)])
    assert both.penalty(model, lambda: torch.tensor(2.0)) == 6.0
    assert both.kept_ranks(model, {"a": 3}) == {"a": 1}
    assert Together(OCCASION, []).penalty(model, lambda: torch.tensor(2.0)) is None
