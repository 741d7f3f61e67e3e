"""Updates added to a base model: the same function as PEFT computes with them beside it, and nothing else changed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.errors import AdapterShapeError
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules, initial_adapter, load_adapter
from tasks.training.merging import merged
from tasks.training.models import BaseModel, BaseModelSpec, load_base, state_digest
from tests.strategies import normal
from tests.training.pico import examples_of, save_gpt2

LINEAR = LoraPair(torch.ones(1, 64), torch.ones(24, 1))  # of the small network's first layer
LAYERS = {
    "linear": ("mlp", ()),
    "conv": ("cnn", ()),
    "attention": ("causal_lm", ()),
    "embedding": ("sequence_classification", ("word_embeddings", "query")),
    "transposed": ("gpt2", ("c_attn", "c_fc", "wte")),  # its head is tied to the embedding, and is not adapted
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> BaseModel:
    return load_base(BaseModelSpec("causal_lm", location=str(save_gpt2(tmp_path_factory.mktemp("gpt2")))))


@pytest.fixture(params=LAYERS)
def layers(request, bases, gpt2) -> tuple[BaseModel, LoraSpec]:
    """A base model and the kind of layer to adapt in it."""
    kind, targets = LAYERS[request.param]
    return (gpt2 if kind == "gpt2" else bases[kind]), LoraSpec(target_modules=targets)


def update_of(base: BaseModel, lora: LoraSpec, seed: int, rank: int = 2) -> LoraAdapter:
    """An update of every adapted module, with a scaling of its own."""
    drawn = initial_adapter(base, lora, dict.fromkeys(adapted_modules(base, lora), rank), seed=0).pairs
    return LoraAdapter({
        path: replace(
            pair,
            a=normal(pair.a.shape, seed + 10 * i, scale=0.3),
            b=normal(pair.b.shape, seed + 10 * i + 1, scale=0.3),
            scaling=0.5 + seed,
        )
        for i, (path, pair) in enumerate(drawn.items())
    })  # fmt: skip


def side_by_side(updates: list[LoraAdapter]) -> LoraAdapter:
    """The sum of updates as one adapter whose rank is the sum of theirs."""
    first = updates[0].pairs
    return LoraAdapter({
        path: LoraPair(
            torch.cat([u.pairs[path].a for u in updates]),
            torch.cat([u.pairs[path].scaling * u.pairs[path].b for u in updates], dim=1),
            1.0,
            first[path].form,
        )
        for path in first
    })  # fmt: skip


@torch.inference_mode()
def logits_of(model: torch.nn.Module, kind: str) -> torch.Tensor:
    batch = examples_of(kind).batch(np.arange(4))
    batch.pop("labels")
    return model.eval()(**batch).logits


def weight_of(base: BaseModel, path: str) -> torch.Tensor:
    return base.network.get_parameter(f"{path}.weight")


def weights(base: BaseModel) -> dict[str, torch.Tensor]:
    return dict(base.network.named_parameters(remove_duplicate=False)) | dict(base.network.named_buffers())


def test_a_merged_base_computes_what_peft_computes_with_the_updates_beside_it(layers):
    base, lora = layers
    updates = [update_of(base, lora, 1), update_of(base, lora, 2, rank=3)]
    both = side_by_side(updates)
    model = adapt(base, lora, both.ranks, seed=0)
    load_adapter(model, LoraAdapter(both.pairs, initial_adapter(base, lora, both.ranks, seed=0).dense))
    kind = base.spec.kind
    expected = logits_of(model, kind)
    assert not torch.allclose(expected, logits_of(base.network, kind), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(logits_of(merged(base, updates).network, kind), expected, rtol=1e-4, atol=1e-4)


def test_a_fresh_adapter_on_a_merged_base_changes_nothing_yet(layers):
    base, lora = layers
    whole = merged(base, [update_of(base, lora, 1)])
    model = adapt(whole, lora, dict.fromkeys(adapted_modules(base, lora), 1), seed=3)
    kind = base.spec.kind
    torch.testing.assert_close(logits_of(model, kind), logits_of(whole.network, kind), rtol=0, atol=0)


def test_the_base_itself_is_untouched_and_gives_the_merged_one_its_name(layers):
    base, lora = layers
    before = base.network
    whole = merged(base, [update_of(base, lora, 1)])
    assert base.network is before
    assert state_digest(base.network) == base.digest == whole.digest
    assert state_digest(whole.network) != base.digest


def test_only_weights_of_adapted_layers_are_new_memory(layers):
    base, lora = layers
    whole, old = weights(merged(base, [update_of(base, lora, 1)])), weights(base)
    new = {name for name, tensor in whole.items() if tensor.data_ptr() != old[name].data_ptr()}
    assert whole.keys() == old.keys()
    assert new == {f"{path}.weight" for path in adapted_modules(base, lora)}
    assert not any(tensor.requires_grad for tensor in whole.values())


def test_updates_are_not_written_to(bases):
    update = update_of(bases["mlp"], LoraSpec(), 1)
    before = {path: (pair.a.clone(), pair.b.clone()) for path, pair in update.pairs.items()}
    merged(bases["mlp"], [update, update])
    for path, (a, b) in before.items():
        assert torch.equal(update.pairs[path].a, a)
        assert torch.equal(update.pairs[path].b, b)


def test_whoever_merges_the_same_updates_holds_the_same_bits(layers):
    base, lora = layers
    updates = [update_of(base, lora, seed) for seed in (1, 2, 3)]
    kept_up = [merged(base, updates[:count]) for count in (1, 2, 3)][-1]
    assert state_digest(kept_up.network) == state_digest(merged(base, updates).network)


def test_weights_are_the_float64_sum_rounded_once(bases):
    base = bases["mlp"]
    updates = [update_of(base, LoraSpec(), seed) for seed in (1, 2)]
    for path in updates[0].pairs:
        total = weight_of(base, path).detach().numpy().astype("float64")
        for pair in (update.pairs[path] for update in updates):
            total = total + pair.scaling * (pair.b.numpy().astype("float64") @ pair.a.numpy().astype("float64"))
        assert torch.equal(weight_of(merged(base, updates), path), torch.tensor(total).float())


def test_small_updates_of_a_coarse_base_are_not_lost_one_by_one(bases):
    """A quarter of the last place vanishes each time it is rounded; three quarters of it do not."""
    coarse = load_base(replace(bases["mlp"].spec, dtype="bfloat16"))
    weight_of(coarse, "layers.0").fill_(1.0)
    quarter = LoraAdapter({"layers.0": replace(LINEAR, b=LINEAR.b * 2**-9)})
    one, three = (weight_of(merged(coarse, [quarter] * n), "layers.0") for n in (1, 3))
    assert one.dtype == three.dtype == torch.bfloat16
    assert (set(one.flatten().tolist()), set(three.flatten().tolist())) == ({1.0}, {1.0 + 2**-7})


def test_a_module_that_one_update_leaves_out_gets_the_others_alone(bases):
    base = bases["mlp"]
    first, second = update_of(base, LoraSpec(), 1), update_of(base, LoraSpec(), 2)
    path = next(iter(first.pairs))
    alone = merged(base, [first, LoraAdapter({path: second.pairs[path]})])
    both, one = merged(base, [first, second]), merged(base, [first])
    for name in first.pairs:
        assert torch.equal(weight_of(alone, name), weight_of(both if name == path else one, name))


@pytest.mark.parametrize("updates", [[], [LoraAdapter({})]])
def test_nothing_to_add_gives_the_base_itself(bases, updates):
    assert merged(bases["mlp"], updates) is bases["mlp"]


def test_dense_tensors_beside_pairs_do_not_count(bases):
    alone, beside = (
        merged(bases["mlp"], [LoraAdapter({"layers.0": LINEAR}, dense)]).network.state_dict()
        for dense in ({}, {"layers.0.base_layer.bias": torch.ones(24)})
    )
    assert all(torch.equal(tensor, beside[name]) for name, tensor in alone.items())


@pytest.mark.parametrize("path", ["layers.9", "layers", "typo.weight", ""])
def test_a_module_that_the_base_lacks_is_named(bases, path):
    with pytest.raises(AdapterShapeError, match=f"module {path}: is not in the base model"):
        merged(bases["mlp"], [LoraAdapter({path: LINEAR})])


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("mlp", "layers.0", lambda o, i: (o, i + 1)),
        ("mlp", "layers.0", lambda o, i: (i, o)),
        ("cnn", "convs.0", lambda o, i: (o + 1, i)),
        ("cnn", "convs.0", lambda o, i: (o // 2, 2 * i)),
        ("sequence_classification", "bert.embeddings.word_embeddings", lambda o, i: (i, o)),
    ],
    ids=["one input more", "transposed", "one channel more", "as many numbers", "transposed embedding"],
)
def test_an_update_of_another_size_is_refused_by_name(bases, kind, path, wrong: Callable[[int, int], tuple[int, int]]):
    base = bases[kind]
    weight = weight_of(base, path)
    sizes = (weight.shape[1], weight.shape[0]) if "embed" in path else (weight.shape[0], weight[0].numel())
    outputs, inputs = wrong(*sizes)
    pair = LoraPair(torch.ones(1, inputs), torch.ones(outputs, 1))
    with pytest.raises(AdapterShapeError, match=f"module {path}: an update does not fit") as caught:
        merged(base, [LoraAdapter({path: pair})])
    assert f"expected [{len(weight)}, {weight[0].numel()}]" in str(caught.value)
    assert state_digest(base.network) == base.digest
