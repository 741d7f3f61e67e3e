from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from tasks.errors import ModelError, UnknownNameError
from tasks.training.models import BaseModelSpec, load_base, state_digest
from tests.training.pico import KINDS, LABELS, SMALL, VOCABULARY, save_bert, save_llama, spec_of

MLP = BaseModelSpec("mlp", num_labels=3, input_shape=(1, 8, 8), hidden_sizes=(24, 16))


def test_every_model_is_frozen_and_in_evaluation_mode(base):
    assert not any(parameter.requires_grad for parameter in base.network.parameters())
    assert not base.network.training


def test_every_model_counts_each_parameter_once(base):
    assert base.num_parameters == sum(p.numel() for p in set(base.network.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_loading_twice_gives_one_digest_and_leaves_the_global_generator(kind, bases):
    before = torch.get_rng_state()
    again = load_base(bases[kind].spec)
    assert again.digest == bases[kind].digest
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["mlp", "cnn", "sequence_classification", "image_classification"])
def test_the_seed_decides_weights_that_no_checkpoint_brings(kind, bases):
    other = load_base(replace(bases[kind].spec, seed=1))
    assert other.digest != bases[kind].digest


def test_small_networks_are_the_same_on_every_machine():
    # Written down once: another value on another machine means that sites would hold different base models.
    assert load_base(MLP).digest == "f3131263066c0423cf4ead8467f0c6ad28e7b294c3ad553fcafaddcaaecf6be3"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_digest_changes_with_one_bit(dtype):
    base = load_base(replace(MLP, dtype=dtype))
    weight = base.network.get_parameter("layers.1.bias")
    assert weight.dtype == getattr(torch, dtype)
    weight.data[0] = torch.nextafter(weight.data[0], torch.tensor(9.0, dtype=weight.dtype))
    assert state_digest(base.network) != base.digest


def test_digest_tells_shapes_apart():
    flat, tall = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 4, bias=False)
    torch.nn.init.ones_(flat.weight)
    torch.nn.init.ones_(tall.weight)
    assert state_digest(flat) != state_digest(tall)


@pytest.mark.parametrize("kind", ["sequence_classification", "image_classification"])
def test_label_names_reach_the_model(kind, bases):
    config = bases[kind].network.config
    assert [config.id2label[i] for i in range(3)] == list(LABELS)
    assert config.num_labels == 3


def test_a_head_that_the_checkpoint_lacks_is_known_as_fresh(bases):
    assert bases["sequence_classification"].fresh_modules == ("classifier",)
    assert bases["causal_lm"].fresh_modules == ()


def test_a_head_of_another_size_is_drawn_anew(tmp_path):
    folder = save_bert(tmp_path)
    config = BertConfig.from_pretrained(folder, num_labels=5)
    BertForSequenceClassification(config).save_pretrained(folder)
    base = load_base(BaseModelSpec("sequence_classification", location=str(folder), num_labels=3))
    assert base.fresh_modules == ("classifier",)
    assert base.network.get_parameter("classifier.weight").shape == (3, 32)


def test_a_pooler_that_the_checkpoint_lacks_is_fresh_too(tmp_path):
    folder = save_bert(tmp_path)
    BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **SMALL)).save_pretrained(folder)
    base = load_base(BaseModelSpec("sequence_classification", location=str(folder), num_labels=3))
    assert base.fresh_modules == ("bert.pooler.dense", "classifier")


def test_a_missing_pad_token_becomes_the_end_token(bases):
    base = bases["causal_lm"]
    assert base.processor.pad_token == "</s>"
    assert base.network.config.pad_token_id == 2


def test_processors_read_what_their_model_takes(bases):
    assert bases["sequence_classification"].processor("w4 w5")["input_ids"] == [4, 5]
    pixels = bases["image_classification"].processor(torch.zeros(3, 20, 20), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert bases["mlp"].processor is None


def _wrong_architecture(folder: Path) -> BaseModelSpec:
    return BaseModelSpec("image_classification", location=str(save_bert(folder)), num_labels=3)


def _body_without_language_head(folder: Path) -> BaseModelSpec:
    return BaseModelSpec("causal_lm", location=str(save_bert(folder)))


def _weights_of_another_model(folder: Path) -> BaseModelSpec:
    save_llama(folder)
    (folder / "llama.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    save_bert(folder)
    (folder / "llama.safetensors").replace(folder / "model.safetensors")
    return BaseModelSpec("sequence_classification", location=str(folder), num_labels=3)


def _pickled_weights_only(folder: Path) -> BaseModelSpec:
    save_bert(folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    return BaseModelSpec("sequence_classification", location=str(folder), num_labels=3)


def _damaged_weights(folder: Path) -> BaseModelSpec:
    spec = spec_of("causal_lm", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    return spec


def _no_such_folder(folder: Path) -> BaseModelSpec:
    return BaseModelSpec("causal_lm", location=str(folder / "absent"))


def _nothing(folder: Path) -> BaseModelSpec:
    return BaseModelSpec("causal_lm")


def _hub_id_offline(folder: Path) -> BaseModelSpec:
    return BaseModelSpec("causal_lm", location="rankweave-tests/absent")


@pytest.mark.parametrize(
    "wrong",
    [
        _wrong_architecture, _body_without_language_head, _weights_of_another_model, _pickled_weights_only,
        _damaged_weights, _no_such_folder, _nothing, _hub_id_offline,
    ],
)  # fmt: skip
def test_a_location_that_cannot_be_used_is_named_with_a_remedy(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = wrong(tmp_path)
    with pytest.raises(ModelError, match=r"model\.location") as caught:
        load_base(spec)
    assert caught.value.remedy
    assert spec.location in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_labels": 0}, "model.num_labels"),
        ({"num_labels": 1}, "model.num_labels"),
        ({"label_names": ("a", "b")}, "model.num_labels"),
        ({"input_shape": ()}, "model.input_shape"),
        ({"input_shape": (1, 0, 8)}, "model.input_shape"),
        ({"kind": "cnn", "input_shape": (1, 3, 8)}, "model.input_shape"),
        ({"kind": "cnn", "hidden_sizes": ()}, "model.hidden_sizes"),
    ],
)
def test_sizes_that_make_no_network_are_named(change, field):
    with pytest.raises(ModelError, match=field):
        load_base(replace(MLP, **change))


@pytest.mark.parametrize("change", [{"kind": "tree"}, {"dtype": "int8"}])
def test_unknown_names_list_the_known_ones(change):
    with pytest.raises(UnknownNameError, match=r"mlp|float32"):
        load_base(replace(MLP, **change))
