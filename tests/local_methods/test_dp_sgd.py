"""DP-SGD through the real loop and Opacus: plain steps where nothing hides, clipped and noised ones otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy import stats
from torch import nn

from tasks.errors import ConfigError, ModelError
from tasks.local_methods.dp_sgd import DP_CLIP_NORM, DP_NOISE_MULTIPLIER, DpSgd
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.options import chosen
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules, extract_adapter, load_adapter
from tasks.training.loop import TrainingSpec, train
from tasks.training.models import BaseModel, load_base
from tests.training.pico import examples_of, spec_of

OCCASION = Occasion(seed=0, round_index=1)
# 22 examples in steps of 8: the last step has 6, as one batch of 4 and one of 2.
SPEC = TrainingSpec(batch_size=4, accumulation_steps=2, learning_rate=0.5, optimizer="sgd", device="cpu")
KINDS = ("mlp", "cnn", "sequence_classification", "causal_lm")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, BaseModel]:
    return {kind: load_base(spec_of(kind, tmp_path_factory.mktemp(kind))) for kind in KINDS}


def adapted(base: BaseModel, lora: LoraSpec = LoraSpec()) -> PeftModel:  # noqa: B008 - frozen
    model = adapt(base, lora, dict.fromkeys(adapted_modules(base, lora), 2), seed=1)
    with torch.no_grad():
        # Away from b = 0, where factor a has no gradient to clip.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


def without_dropout(model: PeftModel) -> PeftModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def method(clip: float = 1e9, noise: float = 0.0, seed: int = 0) -> DpSgd:
    generator = torch.Generator().manual_seed(seed)
    return DpSgd(OCCASION, dp_clip_norm=clip, dp_noise_multiplier=noise, generator=generator)


def trained(model: PeftModel, kind: str, added: LocalMethod, spec: TrainingSpec = SPEC) -> dict[str, torch.Tensor]:
    train(model, examples_of(kind), np.arange(22), spec, seed=0, method=added)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def private_gradients(model: PeftModel, kind: str, groups: list[np.ndarray], added: DpSgd) -> dict[str, torch.Tensor]:
    """Return the gradients of one step, as the loop would make them from these batches."""
    model.train()
    added.start(model)
    batches = [examples_of(kind).batch(group) for group in groups]
    items = [b["labels"].numel() if b["labels"].ndim == 1 else int((b["labels"][:, 1:] != -100).sum()) for b in batches]
    for batch, count in zip(batches, items, strict=True):
        (model.get_base_model()(**batch).loss * count / sum(items)).backward()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), 0.1)
    added.before_step(model, optimizer, 1)
    found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    added.after_step(model, optimizer, 1)
    added.detach()
    return found


def clipped_mean(model: PeftModel, kind: str, indices: np.ndarray, clip: float) -> dict[str, torch.Tensor]:
    """The paper's sum, an example at a time through plain autograd."""
    model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for index in indices:
        loss = model.get_base_model()(**examples_of(kind).batch(np.array([index]))).loss
        grads = torch.autograd.grad(loss, list(parameters.values()))
        norm = sum(float((g.double() ** 2).sum()) for g in grads) ** 0.5
        for name, grad in zip(parameters, grads, strict=True):
            total[name] += grad * min(1.0, clip / norm)
    return {name: t / len(indices) for name, t in total.items()}


@pytest.mark.parametrize("kind", ["mlp", "cnn", "sequence_classification"])
def test_without_noise_and_clipping_it_trains_as_plain_sgd(bases, kind):
    model, plain = adapted(bases[kind]), adapted(bases[kind])
    before = extract_adapter(model)
    private, expected = trained(model, kind, method()), trained(plain, kind, LocalMethod(OCCASION))
    for name, tensor in private.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    after = extract_adapter(model)
    assert all(not torch.equal(after.pairs[p].b, before.pairs[p].b) for p in before.pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_gradients_are_the_mean_of_the_examples_clipped_ones(bases, kind, clip):
    groups = [np.array([0, 5, 7, 9]), np.array([2, 3])]
    found = private_gradients(without_dropout(adapted(bases[kind])), kind, groups, method(clip))
    expected = clipped_mean(without_dropout(adapted(bases[kind])), kind, np.concatenate(groups), clip)
    assert found.keys() == expected.keys()
    largest = max(float(t.abs().max()) for t in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4 * largest)
    norm = float(torch.nn.utils.get_total_norm(list(found.values())))
    assert norm <= clip * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["mlp", "causal_lm"])
def test_one_example_moves_the_sum_by_at_most_twice_the_clipping_norm(bases, kind):
    groups = [np.array([[0, 1, 2, 3]]), np.array([[0, 1, 2, 20]])]
    one, two = (private_gradients(adapted(bases[kind]), kind, list(g), method(0.05)) for g in groups)
    moved = 4 * float(torch.nn.utils.get_total_norm([one[name] - two[name] for name in one]))
    assert 0 < moved <= 2 * 0.05 * (1 + 1e-4)


def test_noise_has_the_spread_it_says_over_the_examples_of_the_step(bases):
    groups, clip, noise = [np.arange(5)], 0.5, 4.0
    quiet = private_gradients(adapted(bases["mlp"]), "mlp", groups, method(clip))
    loud = private_gradients(adapted(bases["mlp"]), "mlp", groups, method(clip, noise))
    drawn = torch.cat([(loud[name] - quiet[name]).flatten() for name in quiet]).double() * 5 / (clip * noise)
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], df=drawn.numel())
    assert low < float((drawn**2).sum()) < high


def test_noise_does_not_come_from_the_runs_seed(bases):
    def noised(seed: int) -> torch.Tensor:
        added = DpSgd(Occasion(seed=seed, round_index=1))
        found = private_gradients(adapted(bases["mlp"]), "mlp", [np.arange(4)], added)
        return torch.cat([t.flatten() for t in found.values()])

    assert not torch.equal(noised(0), noised(0))


def test_a_training_with_noise_moves_every_factor_and_leaves_a_usable_model(bases):
    model = adapted(bases["sequence_classification"])
    before = extract_adapter(model)
    added = method(clip=1.0, noise=1.0)
    trained(model, "sequence_classification", added, replace(SPEC, max_steps=1))
    after = extract_adapter(model)
    assert all(not torch.equal(after.pairs[p].b, before.pairs[p].b) for p in before.pairs)
    assert added.kept_ranks(model, {"m": 2}) == {"m": 2}
    assert not any(hasattr(p, name) for p in model.parameters() for name in ("grad_sample", "_forward_counter"))
    # Detached, it starts from the same adapter and trains as any other model; and once more in private.
    plain = adapted(bases["sequence_classification"])
    results = []
    for again in (model, plain):
        load_adapter(again, before)
        results.append(trained(again, "sequence_classification", LocalMethod(OCCASION)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    trained(model, "sequence_classification", method(noise=1.0), replace(SPEC, max_steps=1))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_and_norms_are_private_too(bases, bias):
    lora = LoraSpec(bias=bias)
    base = bases["sequence_classification"]
    private = trained(adapted(base, lora), "sequence_classification", method())
    expected = trained(adapted(base, lora), "sequence_classification", LocalMethod(OCCASION))
    assert any(name.endswith("bias") for name in private)
    for name, tensor in private.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    """A linear layer under whatever comes before it."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.last(self.first(x)), labels)


class Flattened(nn.Module):
    """Shows its linear layer every number as an example of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.reshape(-1, 1)).reshape(x.shape)


class Scale(nn.Module):
    """A trained tensor that no library knows the layer of."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(4))


@pytest.mark.parametrize(("first", "message"), [(nn.BatchNorm1d(4), "batch norm"), (Scale(), "Scale.*Linear")])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_modules_that_mix_examples_or_hide_them_are_refused(first, message, is_frozen):
    network = Net(first)
    first.requires_grad_(requires_grad=not is_frozen)
    if is_frozen and isinstance(first, Scale):
        method().start(network)
        return
    with pytest.raises(ModelError, match=message):
        method().start(network)


@pytest.mark.parametrize("case", ["flattened", "twice", "unseen"])
def test_gradients_that_do_not_come_one_per_example_are_refused(case):
    network, added = Net(Flattened() if case == "flattened" else nn.Linear(4, 4)), method()
    if case == "unseen":
        network.last.requires_grad_(requires_grad=False)
    added.start(network)
    network.requires_grad_()
    batch = {"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), "labels": torch.arange(5) % 3}
    # A method that computes the loss again makes the model see each example twice before one backward pass.
    torch.stack([network(**batch) for _ in range(2 if case == "twice" else 1)]).sum().backward()
    with pytest.raises(ModelError, match=r"step 3, tensor .* one gradient per example"):
        added.before_step(network, torch.optim.SGD(network.parameters(), 0.1), 3)


def test_options_become_its_keywords():
    values = chosen("dp_sgd", (DP_CLIP_NORM, DP_NOISE_MULTIPLIER), {"dp_clip_norm": 0.5})
    assert values == {"dp_clip_norm": 0.5, "dp_noise_multiplier": 1.0}
    DpSgd(OCCASION, **values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dp_clip_norm"):
        chosen("dp_sgd", (DP_CLIP_NORM,), {"dp_clip_norm": 0.0})


def test_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr("tasks.privacy.extra.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"dp_sgd.*pip install 'rankweave\[privacy\]'"):
        DpSgd(OCCASION)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_of_half_precision_are_refused_because_norms_would_round_beyond_the_clip(bases, dtype):
    model = adapted(bases["mlp"])
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    first.data = first.data.to(dtype)
    with pytest.raises(ModelError, match="cannot be trained privately in half precision"):
        DpSgd(OCCASION).start(model)
