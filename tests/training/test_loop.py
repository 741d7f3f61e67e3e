import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.data.examples import TensorExamples, TokenExamples
from tasks.errors import (
    ConfigError,
    DataError,
    DeadlineExceededError,
    ModelError,
    TrainingDivergedError,
    UnknownNameError,
)
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.lora import PlainLora
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules, extract_adapter
from tasks.training.loop import TrainingSpec, train
from tasks.training.models import state_digest
from tests.training.pico import examples_of

PLAIN = LoraSpec()
FAST = TrainingSpec(epochs=1, batch_size=8, learning_rate=0.01, device="cpu")


def adapted(base, lora=PLAIN):
    return adapt(base, lora, dict.fromkeys(adapted_modules(base, lora), 2), seed=1)


def trained(base, spec=FAST, *, seed=0, lora=PLAIN, indices=None, examples=None):
    """Return what training gave, every trained tensor in one, and the adapter."""
    examples = examples or examples_of(base.spec.kind)
    model = adapted(base, lora)
    indices = np.arange(len(examples)) if indices is None else indices
    result = train(model, examples, indices, spec, seed=seed, method=PlainLora(Occasion(0, 1)))
    adapter = extract_adapter(model)
    factors = [t.flatten() for pair in adapter.pairs.values() for t in (pair.a, pair.b)]
    return result, torch.cat([*factors, *(t.flatten() for t in adapter.dense.values())])


def test_training_learns(base):
    result, _ = trained(base, replace(FAST, epochs=8))
    assert result.last_loss < result.first_loss
    assert (result.num_examples, result.num_steps) == (24, 24)
    assert result.seconds > 0


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator(base):
    lora = LoraSpec(dropout=0.3)
    before = torch.get_rng_state()
    first, second = (trained(base, lora=lora)[1] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_the_seed_decides_order_and_dropout(bases):
    base = bases["mlp"]
    assert not torch.equal(trained(base)[1], trained(base, seed=1)[1])
    # One batch of everything: the order cannot matter beyond rounding, dropout can.
    whole, lora = replace(FAST, batch_size=24), LoraSpec(dropout=0.3)
    assert not torch.allclose(trained(base, whole, lora=lora)[1], trained(base, whole, seed=1, lora=lora)[1], atol=1e-4)
    torch.testing.assert_close(trained(base, whole)[1], trained(base, whole, seed=1)[1])


def test_two_batches_accumulated_equal_one_of_both(base):
    # No dropout, whose draws depend on the shape of the batch; SGD, whose step is linear in the gradient.
    network = copy.deepcopy(base.network)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    still = replace(base, network=network)
    spec = replace(FAST, optimizer="sgd", learning_rate=0.1, batch_size=16)
    one_result, one = trained(still, spec)
    two_result, two = trained(still, replace(spec, batch_size=8, accumulation_steps=2))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert two_result.num_steps == one_result.num_steps == 2
    assert two_result.first_loss == pytest.approx(one_result.first_loss, rel=1e-5)
    assert two_result.mean_loss == pytest.approx(one_result.mean_loss, rel=1e-5)


def test_a_last_group_and_batch_may_be_smaller(bases):
    spec = replace(FAST, optimizer="sgd", batch_size=5, accumulation_steps=2)
    result, several = trained(bases["mlp"], spec, indices=np.arange(13))
    assert result.num_steps == 2
    _, single = trained(bases["mlp"], replace(spec, batch_size=10, accumulation_steps=1), indices=np.arange(13))
    torch.testing.assert_close(several, single)


def test_max_steps_is_kept_over_as_many_epochs_as_it_takes(bases):
    for steps in (1, 3, 8):
        assert trained(bases["mlp"], replace(FAST, max_steps=steps))[0].num_steps == steps


def test_every_epoch_sees_every_example_once_in_another_order(bases):
    seen = []

    class Watched(TensorExamples):
        def batch(self, indices):
            seen.extend(indices.tolist())
            return super().batch(indices)

    watched = Watched(examples_of("mlp").tensors)
    trained(bases["mlp"], replace(FAST, epochs=2), examples=watched, indices=np.arange(3, 20))
    assert sorted(seen[:17]) == sorted(seen[17:]) == list(range(3, 20))
    assert seen[:17] != seen[17:]


@pytest.mark.parametrize("bound", [1e-4, 1e-3])
def test_clipping_bounds_a_step(bases, bound):
    spec = replace(FAST, optimizer="sgd", learning_rate=1.0, max_grad_norm=bound, max_steps=1)
    _, start = trained(bases["mlp"], replace(spec, learning_rate=0.0))
    _, clipped = trained(bases["mlp"], spec)
    _, free = trained(bases["mlp"], replace(spec, max_grad_norm=0))
    assert float((clipped - start).norm()) == pytest.approx(bound, rel=1e-3)
    assert float((free - start).norm()) > 2 * bound


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_weight_decay_and_momentum_reach_the_optimizer(bases, optimizer):
    spec = replace(FAST, optimizer=optimizer)
    _, plain = trained(bases["mlp"], spec)
    assert not torch.equal(plain, trained(bases["mlp"], replace(spec, weight_decay=0.1))[1])
    assert torch.equal(plain, trained(bases["mlp"], replace(spec, momentum=0.9))[1]) == (optimizer != "sgd")


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_the_base_is_untouched_whatever_is_trained(base, bias):
    last = [path for path, _ in base.network.named_modules() if path][-1]
    # Only our own networks have a trained head to name; transformers' classifiers bring theirs.
    saved = (last,) if base.spec.kind in ("mlp", "cnn") else ()
    _, before = trained(base, replace(FAST, learning_rate=0.0), lora=LoraSpec(bias=bias, modules_to_save=saved))
    _, after = trained(base, lora=LoraSpec(bias=bias, modules_to_save=saved))
    assert not torch.equal(before, after)
    assert state_digest(base.network) == base.digest
    assert all(parameter.grad is None for parameter in base.network.parameters())


def test_clients_in_threads_get_what_they_would_alone(bases):
    base, lora = bases["sequence_classification"], LoraSpec(dropout=0.3, bias="all")
    alone = [trained(base, seed=seed, lora=lora)[1] for seed in range(2)]
    together: dict[int, torch.Tensor] = {}

    def client(seed: int) -> None:
        together[seed] = trained(base, seed=seed, lora=lora)[1]

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(torch.equal(together[seed], alone[seed]) for seed in range(2))
    assert state_digest(base.network) == base.digest


def test_the_model_gets_its_mode_back_and_keeps_no_gradients(bases):
    model = adapted(bases["mlp"]).eval()
    train(model, examples_of("mlp"), np.arange(8), FAST, seed=0, method=PlainLora(Occasion(0, 1)))
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_is_close_to_full_precision_and_off_on_a_cpu(bases):
    _, full = trained(bases["mlp"], replace(FAST, precision="fp32", optimizer="sgd"))
    _, half = trained(bases["mlp"], replace(FAST, precision="bf16", optimizer="sgd"))
    _, auto = trained(bases["mlp"], replace(FAST, precision="auto", optimizer="sgd"))
    assert torch.equal(full, auto)
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0.05, atol=0.01)


def test_an_asked_stop_is_obeyed_at_the_next_step(bases):
    asked = []

    def should_stop():
        asked.append(None)
        return DeadlineExceededError("client c00, round 1", "ran past its deadline") if len(asked) == 2 else None

    model = adapted(bases["mlp"])
    with pytest.raises(DeadlineExceededError, match="c00"):
        train(
            model,
            examples_of("mlp"),
            np.arange(24),
            FAST,
            seed=0,
            method=PlainLora(Occasion(0, 1)),
            should_stop=should_stop,
        )
    assert len(asked) == 2


@pytest.mark.parametrize("step", [1, 3])
def test_divergence_names_the_step(bases, step):
    pixels = torch.rand(24, 1, 8, 8)
    examples = TensorExamples({"pixel_values": pixels, "labels": torch.arange(24) % 3})
    order = np.random.default_rng(0).permutation(24)
    pixels[order[8 * step - 1]] = float("nan")
    with pytest.raises(TrainingDivergedError, match=f"step {step}"):
        trained(bases["mlp"], examples=examples)


def test_no_examples_and_no_tokens_are_refused(bases):
    with pytest.raises(DataError, match="no examples"):
        trained(bases["mlp"], indices=np.arange(0))
    silent = TokenExamples([[4, 5]] * 4, [[4, -100]] * 4, pad_id=0)
    with pytest.raises(DataError, match="no token"):
        trained(bases["causal_lm"], examples=silent)


def test_a_model_without_trainable_tensors_is_refused(bases):
    with pytest.raises(ModelError, match="nothing to train"):
        train(bases["mlp"].network, examples_of("mlp"), np.arange(8), FAST, seed=0, method=PlainLora(Occasion(0, 1)))


@pytest.mark.parametrize("change", [{"optimizer": "lion"}, {"precision": "fp8"}, {"device": "tpu"}])
def test_unknown_names_list_the_known_ones(bases, change):
    with pytest.raises(UnknownNameError, match=r"adam|auto"):
        trained(bases["mlp"], replace(FAST, **change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named(bases):
    with pytest.raises(ConfigError, match=r"training\.device"):
        trained(bases["mlp"], replace(FAST, device="cuda"))
