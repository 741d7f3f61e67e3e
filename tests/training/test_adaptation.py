import copy
import re
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import write_adapter
from tasks.errors import AdapterShapeError, ModelError
from tasks.training.adaptation import (
    LoraSpec,
    adapt,
    adapted_modules,
    extract_adapter,
    initial_adapter,
    load_adapter,
    peft_config,
)
from tasks.training.models import BaseModelSpec, load_base, state_digest
from tests.training.pico import examples_of, save_gpt2

PLAIN = LoraSpec()


def mixed_ranks(base, lora=PLAIN) -> dict[str, int]:
    return {path: 1 + number % 3 for number, path in enumerate(adapted_modules(base, lora))}


def noise_like(adapter: LoraAdapter, seed: int = 5) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)

    def drawn(tensor):
        return torch.randn(tensor.shape, generator=generator) * 0.1

    pairs = {path: replace(pair, a=drawn(pair.a), b=drawn(pair.b)) for path, pair in adapter.pairs.items()}
    return LoraAdapter(pairs, {name: drawn(tensor) for name, tensor in adapter.dense.items()})


def assert_same(left: LoraAdapter, right: LoraAdapter, **tolerance):
    assert left.ranks == right.ranks
    assert list(left.dense) == list(right.dense)
    for path, pair in left.pairs.items():
        torch.testing.assert_close(pair.a, right.pairs[path].a, **tolerance)
        torch.testing.assert_close(pair.b, right.pairs[path].b, **tolerance)
    for name, tensor in left.dense.items():
        torch.testing.assert_close(tensor, right.dense[name], **tolerance)


@torch.inference_mode()
def logits_of(model, kind: str) -> torch.Tensor:
    batch = examples_of(kind).batch(range(4))
    batch.pop("labels")
    return model.eval()(**batch).logits


def test_adapted_modules_have_the_sizes_of_their_layers(base):
    for path, sizes in adapted_modules(base, PLAIN).items():
        weight = base.network.get_submodule(path).weight
        assert sizes == (weight.shape[0], weight[0].numel())


def test_small_networks_are_adapted_in_every_layer(bases):
    assert list(adapted_modules(bases["mlp"], PLAIN)) == ["layers.0", "layers.1", "layers.2"]
    assert list(adapted_modules(bases["cnn"], PLAIN)) == ["convs.0", "convs.1", "layers.0", "layers.1"]
    all_linear = LoraSpec(target_modules=("all-linear",))
    assert list(adapted_modules(bases["cnn"], all_linear)) == ["layers.0", "layers.1"]


def test_transformers_are_adapted_as_peft_or_the_user_chooses(bases):
    assert {path.rpartition(".")[2] for path in adapted_modules(bases["causal_lm"], PLAIN)} == {"q_proj", "v_proj"}
    bert = bases["sequence_classification"]
    everything = adapted_modules(bert, LoraSpec(target_modules=("all-linear",)))
    assert "bert.encoder.layer.0.output.dense" in everything
    assert "classifier" not in everything
    embedding = LoraSpec(target_modules=("word_embeddings",))
    assert adapted_modules(bert, embedding) == {"bert.embeddings.word_embeddings": (32, 48)}


def test_the_initial_adapter_changes_nothing(base):
    start = initial_adapter(base, PLAIN, mixed_ranks(base), seed=3)
    assert all(not pair.b.any() and pair.a.any() and pair.scaling == 1 for pair in start.pairs.values())
    model = adapt(base, PLAIN, mixed_ranks(base), seed=4)
    load_adapter(model, start)
    kind = base.spec.kind
    torch.testing.assert_close(logits_of(model, kind), logits_of(base.network, kind), rtol=0, atol=0)


def test_the_initial_adapter_follows_its_seed_and_leaves_the_global_generator(base):
    before = torch.get_rng_state()
    first, second, other = (initial_adapter(base, PLAIN, mixed_ranks(base), seed=seed) for seed in (3, 3, 4))
    assert_same(first, second, rtol=0, atol=0)
    assert not any(torch.equal(first.pairs[path].a, other.pairs[path].a) for path in first.pairs)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("lora", [PLAIN, LoraSpec(alpha=16), LoraSpec(alpha=16, use_rslora=True)], ids=str)
def test_what_is_loaded_comes_out_again_under_any_scaling(base, lora):
    ranks = mixed_ranks(base)
    adapter = noise_like(initial_adapter(base, lora, ranks, seed=3))
    model = adapt(base, lora, ranks, seed=4)
    load_adapter(model, adapter)
    assert_same(extract_adapter(model), adapter)


def test_the_update_is_the_same_under_any_scaling(base):
    ranks = mixed_ranks(base)
    adapter = noise_like(initial_adapter(base, PLAIN, ranks, seed=3))
    results = []
    for lora in (PLAIN, LoraSpec(alpha=16), LoraSpec(alpha=16, use_rslora=True)):
        model = adapt(base, lora, ranks, seed=4)
        load_adapter(model, adapter)
        results.append(logits_of(model, base.spec.kind))
    assert not torch.equal(results[0], logits_of(base.network, base.spec.kind))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_scalings_are_what_the_spec_says(bases):
    ranks = {"layers.0": 4, "layers.1": 16}
    for lora, expected in [
        (PLAIN, [1, 1]),
        (LoraSpec(alpha=8), [2, 0.5]),
        (LoraSpec(alpha=8, use_rslora=True), [4, 2]),
    ]:
        model = adapt(bases["mlp"], lora, ranks, seed=0)
        assert [m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)] == expected


def test_frozen_tensors_are_shared_and_trained_ones_are_not(base):
    lora = LoraSpec(bias="all")
    model = adapt(base, lora, mixed_ranks(base, lora), seed=0)
    own = {parameter.data_ptr() for parameter in base.network.parameters()}
    frozen = [p for n, p in model.named_parameters() if not p.requires_grad and "original_module" not in n]
    assert frozen
    assert all(parameter.data_ptr() in own for parameter in frozen)
    assert not any(p.data_ptr() in own for p in model.parameters() if p.requires_grad)
    assert not any(parameter.requires_grad for parameter in base.network.parameters())


def test_a_module_takes_its_own_rank_and_no_other(bases):
    spec = replace(bases["mlp"].spec, hidden_sizes=(8,) * 12)
    base = load_base(spec)
    ranks = dict.fromkeys(adapted_modules(base, PLAIN), 2) | {"layers.1": 3}
    assert initial_adapter(base, PLAIN, ranks, seed=0).ranks == dict(sorted(ranks.items()))
    assert initial_adapter(base, PLAIN, {"layers.1": 3}, seed=0).ranks == {"layers.1": 3}


def test_a_path_that_ends_like_another_is_not_taken_for_it(bases):
    base = bases["mlp"]
    nested = torch.nn.ModuleDict({"layers": base.network.layers, "x": copy.deepcopy(base.network)}).requires_grad_(
        requires_grad=False
    )
    twice = replace(base, network=nested)
    ranks = {"layers.1": 2, "x.layers.1": 3, "layers.0": 1}
    assert initial_adapter(twice, PLAIN, ranks, seed=0).ranks == dict(sorted(ranks.items()))


def test_heads_and_biases_are_dense_tensors(bases):
    bert, lora = bases["sequence_classification"], LoraSpec(bias="all")
    start = initial_adapter(bert, lora, mixed_ranks(bert, lora), seed=0)
    assert {"classifier.weight", "classifier.bias"} <= set(start.dense)
    assert "bert.encoder.layer.0.output.dense.bias" in start.dense
    assert not any("modules_to_save" in name or "original_module" in name for name in start.dense)
    assert set(initial_adapter(bert, PLAIN, mixed_ranks(bert), seed=0).dense) == {
        "classifier.weight",
        "classifier.bias",
    }


def test_loading_refuses_what_does_not_fit_and_changes_nothing(bases):
    base, ranks = bases["mlp"], {"layers.0": 2, "layers.1": 3}
    lora = LoraSpec(bias="all")
    model = adapt(base, lora, ranks, seed=0)
    before = extract_adapter(model)
    good = noise_like(before)
    dense = dict(good.dense)
    dense.pop("layers.2.bias")
    for wrong, tensor in [
        (LoraAdapter({"layers.0": good.pairs["layers.0"]}, good.dense), r"layers\.1"),
        (LoraAdapter({**good.pairs, "layers.2": good.pairs["layers.1"]}, good.dense), r"layers\.2"),
        (initial_adapter(base, lora, {"layers.0": 1, "layers.1": 3}, seed=0), r"layers\.0"),
        (LoraAdapter(good.pairs, dense), r"layers\.2\.bias"),
    ]:
        with pytest.raises(AdapterShapeError, match=tensor):
            load_adapter(model, wrong)
        assert_same(extract_adapter(model), before, rtol=0, atol=0)


def test_an_extracted_adapter_is_a_copy(bases):
    model = adapt(bases["mlp"], PLAIN, {"layers.0": 2}, seed=0)
    before = extract_adapter(model)
    kept = before.pairs["layers.0"].a.clone()
    load_adapter(model, noise_like(before))
    assert torch.equal(before.pairs["layers.0"].a, kept)


def test_a_half_precision_base_gives_float32_adapters(bases):
    base = load_base(replace(bases["mlp"].spec, dtype="bfloat16"))
    start = initial_adapter(base, LoraSpec(bias="all"), {"layers.0": 2}, seed=0)
    tensors = [start.pairs["layers.0"].a, start.pairs["layers.0"].b, *start.dense.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


# PEFT's own call, on loading.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_what_is_published_loads_into_peft_with_the_same_logits(base, bias, tmp_path):
    lora = LoraSpec(bias=bias, alpha=16)
    ranks = mixed_ranks(base, lora)
    adapter = noise_like(initial_adapter(base, lora, ranks, seed=3))
    model = adapt(base, lora, ranks, seed=4)
    load_adapter(model, adapter)
    write_adapter(tmp_path / "published", adapter, peft_config(base, lora, adapter))
    loaded = PeftModel.from_pretrained(load_base(base.spec).network, tmp_path / "published")
    kind = base.spec.kind
    torch.testing.assert_close(logits_of(loaded, kind), logits_of(model, kind))
    assert state_digest(base.network) == base.digest


def test_transposed_layers_are_adapted(tmp_path):
    base = load_base(BaseModelSpec("causal_lm", location=str(save_gpt2(tmp_path / "gpt2"))))
    sizes = adapted_modules(base, PLAIN)
    assert sizes["transformer.h.0.attn.c_attn"] == (96, 32)
    adapter = noise_like(initial_adapter(base, PLAIN, dict.fromkeys(sizes, 2), seed=0))
    assert peft_config(base, PLAIN, adapter)["fan_in_fan_out"] is True


def test_published_names_are_short_where_that_says_the_same(bases):
    llama, lora = bases["causal_lm"], LoraSpec(target_modules=("q_proj",))
    everywhere = initial_adapter(llama, lora, dict.fromkeys(adapted_modules(llama, lora), 2), seed=0)
    assert peft_config(llama, lora, everywhere)["target_modules"] == ["q_proj"]
    one = initial_adapter(llama, lora, {"model.layers.0.self_attn.q_proj": 2}, seed=0)
    assert peft_config(llama, lora, one)["target_modules"] == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("kind", "lora", "named"),
    [
        ("mlp", LoraSpec(target_modules=("layers.7",)), "layers.0, layers.1, layers.2"),
        ("causal_lm", LoraSpec(target_modules=("q_proj", "query")), "k_proj"),
        ("causal_lm", LoraSpec(target_modules=("norm",)), "lora.target_modules"),
        ("causal_lm", LoraSpec(modules_to_save=("head",)), "lm_head"),
        ("mlp", LoraSpec(use_rslora=True), "lora.alpha"),
    ],
)
def test_wishes_that_the_model_cannot_grant_are_named(bases, kind, lora, named):
    with pytest.raises(ModelError, match=re.escape(named)):
        adapted_modules(bases[kind], lora)


@pytest.mark.parametrize("ranks", [{}, {"layers.0": 0}, {"layers.9": 1}])
def test_ranks_that_no_adapter_can_have_are_refused(bases, ranks):
    with pytest.raises(ModelError):
        adapt(bases["mlp"], PLAIN, ranks, seed=0)


def test_grouped_convolutions_are_refused_with_the_reason(bases):
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2)).requires_grad_(requires_grad=False)
    grouped = replace(bases["cnn"], network=network)
    with pytest.raises(ModelError, match="not one product"):
        adapted_modules(grouped, PLAIN)
    with pytest.raises(ModelError, match="not one product"):
        adapt(grouped, PLAIN, {"0": 2}, seed=0)
