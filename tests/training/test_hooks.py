"""The loop calls a local method's hooks when it says it does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.local_methods.hooks import Occasion
from tasks.local_methods.lora import PlainLora
from tasks.training.adaptation import LoraSpec, adapt, extract_adapter
from tasks.training.loop import TrainingSpec, train
from tests.training.pico import examples_of

OCCASION = Occasion(seed=0, round_index=1)
SPEC = TrainingSpec(batch_size=4, accumulation_steps=2, learning_rate=0.1, optimizer="sgd", device="cpu", max_steps=2)


class Recorder(PlainLora):
    """Writes down which hook ran, and what it could see."""

    def __init__(self, occasion) -> None:
        super().__init__(occasion)
        self.calls: list[tuple[str, int]] = []
        self.grad_norms: list[float] = []

    def start(self, model):
        self.calls.append(("start", 0))

    def penalty(self, model, loss_again):
        self.calls.append(("penalty", 0))

    def before_step(self, model, optimizer, step):
        self.calls.append(("before_step", step))
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        self.grad_norms.append(float(torch.nn.utils.get_total_norm(grads)))

    def after_step(self, model, optimizer, step):
        self.calls.append(("after_step", step))
        assert all(p.grad is None for p in model.parameters())


def run(base, method, spec=SPEC):
    model = adapt(base, LoraSpec(), {"layers.0": 2, "layers.1": 2}, seed=1)
    train(model, examples_of("mlp"), np.arange(24), spec, seed=0, method=method)
    return extract_adapter(model)


def test_hooks_run_in_order_once_per_step(bases):
    recorder = Recorder(OCCASION)
    run(bases["mlp"], recorder)
    per_step = [[("penalty", 0)] * 2 + [("before_step", step), ("after_step", step)] for step in (1, 2)]
    assert recorder.calls == [("start", 0), *per_step[0], *per_step[1]]


def test_gradients_are_clipped_before_the_hook_sees_them(bases):
    recorder = Recorder(OCCASION)
    run(bases["mlp"], recorder, replace(SPEC, max_grad_norm=1e-3))
    assert recorder.grad_norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


class Shrink(PlainLora):
    """Adds weight decay as a penalty."""

    def penalty(self, model, loss_again):
        return 0.05 * sum((p**2).sum() for p in model.parameters() if p.requires_grad)


def test_a_penalty_counts_once_per_step_however_many_batches_it_takes(bases):
    # The gradient of 0.05 |p|^2 is 0.1 p: what SGD's own weight decay of 0.1 adds.
    penalised = run(bases["mlp"], Shrink(OCCASION))
    decayed = run(bases["mlp"], PlainLora(OCCASION), replace(SPEC, weight_decay=0.1))
    for path, pair in penalised.pairs.items():
        torch.testing.assert_close(pair.a, decayed.pairs[path].a)
        torch.testing.assert_close(pair.b, decayed.pairs[path].b)


class FreezeA(PlainLora):
    """Trains only one factor."""

    def start(self, model):
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(requires_grad=False)


def test_what_a_method_freezes_at_the_start_does_not_train(bases):
    start = extract_adapter(adapt(bases["mlp"], LoraSpec(), {"layers.0": 2, "layers.1": 2}, seed=1))
    frozen = run(bases["mlp"], FreezeA(OCCASION))
    for path, pair in frozen.pairs.items():
        assert torch.equal(pair.a, start.pairs[path].a)
        assert not torch.equal(pair.b, start.pairs[path].b)
