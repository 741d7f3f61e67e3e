"""FedProx's pull, against its formula."""

from collections.abc import Mapping

import pytest
import torch

from tasks.local_methods.hooks import Occasion
from tests.local_methods.cases import LORA, OCCASION, make, model_of, plain, same_bits, trace, trained


def no_loss():
    raise AssertionError("the task's loss is not needed")


def moved_model(base, method, distance=0.1):
    model = model_of(base)
    method.start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(distance)
    return model


def far(steps) -> float:
    first, last = (s.parameters for s in (steps[0], steps[-1]))
    return sum(float((last[name] - first[name]).double().square().sum()) for name in first)


def numbers(model) -> Mapping[str, int]:
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


def test_the_penalty_is_half_mu_times_the_squared_distance_over_all_trained_tensors(base):
    method = make("proximal", proximal_mu=0.3)(OCCASION)
    model = moved_model(base, method)
    expected = 0.3 / 2 * 0.1**2 * sum(numbers(model).values())
    assert method.penalty(model, no_loss).item() == pytest.approx(expected, rel=1e-4)


def test_its_gradient_is_mu_times_what_was_moved(base):
    method = make("proximal", proximal_mu=0.3)(OCCASION)
    model = moved_model(base, method)
    method.penalty(model, no_loss).backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.03), rtol=1e-4, atol=1e-6)


def test_it_is_zero_where_nothing_has_moved(base):
    method = make("proximal")(OCCASION)
    model = model_of(base)
    method.start(model)
    assert method.penalty(model, no_loss).item() == 0


def test_a_stronger_pull_stays_closer(bases):
    base = bases["mlp"]
    weak, strong = (trace(base, model_of(base), make("proximal", proximal_mu=mu)(OCCASION)) for mu in (0.01, 100.0))
    assert far(strong) < far(weak)


@pytest.mark.parametrize(("rounds", "round_index", "pulls"), [(0, 9, True), (2, 1, True), (2, 2, True), (2, 3, False)])
def test_the_pull_ends_with_the_initiating_stage(bases, rounds, round_index, pulls):
    method = make("proximal", initiating_rounds=rounds)(Occasion(0, round_index))
    model = moved_model(bases["mlp"], method)
    assert (method.penalty(model, no_loss) is not None) == pulls


def test_a_pull_of_no_strength_is_plain_training_to_the_bit(bases):
    assert same_bits(trained(bases["cnn"], make("proximal", proximal_mu=0)), trained(bases["cnn"], plain))


def test_what_is_frozen_after_the_start_does_not_matter(bases):
    method = make("proximal", proximal_mu=1.0)(OCCASION)
    model = model_of(bases["mlp"], lora=LORA["mlp"])
    method.start(model)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad = False
    assert method.penalty(model, no_loss).item() == 0
