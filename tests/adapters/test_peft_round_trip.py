"""Against PEFT itself: what it saves, we read with the same update; what we write, it loads with the same update."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import from_state_dict, read_adapter, write_adapter
from tasks.adapters.products import dense_product
from tasks.adapters.resize import resize
from tasks.errors import UnsupportedAdapterError
from tests.strategies import normal


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))


class Zoo(nn.Module):
    """One layer of every kind that PEFT adapts, names that are suffixes of one another, and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(12))
        self.x = Inner()
        self.conv1 = nn.Conv2d(6, 5, 1)
        self.conv3 = nn.Conv2d(5, 4, 3, padding=1)
        self.conv_1d = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens):
        hidden = self.embed(tokens)
        for layer in (self.layers[1], self.layers[11], self.x.layers[1]):
            hidden = torch.relu(layer(hidden))
        image = self.conv3(self.conv1(hidden.transpose(1, 2).unsqueeze(3))).squeeze(3)
        return self.head(self.norm(self.conv_1d(image)).mean(dim=2))


class TinyGpt2(GPT2LMHeadModel):
    def __init__(self):
        super().__init__(GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=2, n_head=2))


class TinyBert(BertForSequenceClassification):
    def __init__(self):
        words = {"vocab_size": 17, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        words |= {"intermediate_size": 12, "max_position_embeddings": 8, "num_labels": 3}
        super().__init__(BertConfig.from_dict(words))


LAYERS = ["embed", "layers.1", "layers.11", "conv1", "conv3", "conv_1d"]  # PEFT: also x.layers.1, by its suffix
CASES = {
    "every layer kind": (Zoo, {"r": 3, "lora_alpha": 6, "target_modules": LAYERS}),
    "rsLoRA": (Zoo, {"r": 4, "lora_alpha": 6, "target_modules": LAYERS, "use_rslora": True}),
    "patterns": (
        Zoo,
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": LAYERS,
            "rank_pattern": {"layers.1": 2, "conv3": 5, "layers.11": 7, ".*embed": 1},
            "alpha_pattern": {"conv_1d": 8, "^layers.1": 5},
        },
    ),
    "biases and a head": (
        Zoo,
        {"r": 2, "lora_alpha": 3, "target_modules": ["conv3", "1"], "bias": "all", "modules_to_save": ["head", "norm"]},
    ),
    "biases of the adapted": (Zoo, {"r": 2, "target_modules": ["conv3", "1"], "bias": "lora_only"}),
    "Conv1D of GPT-2": (
        TinyGpt2,
        {"r": 2, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
    "a classifier on BERT": (
        TinyBert,
        {"r": 2, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
    ),
}
TOKENS = torch.arange(16).reshape(2, 8) % 11
pytestmark = [
    # PEFT asks transformers 5 by the old name of a property.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*rank_pattern. or .alpha_pattern. at the same time as .use_rslora.*"),
    # The embedding is a target, so PEFT also saves its frozen base weights; that is what we want to meet.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`.*"),
    pytest.mark.filterwarnings("ignore:Could not identify embedding layer.*"),
]


def built(model_class, seed=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class().eval()


def trained(case):
    """A PeftModel whose every trainable number has moved away from its start."""
    model_class, words = CASES[case]
    model = get_peft_model(built(model_class), LoraConfig(**words)).eval()
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.copy_(normal(parameter.shape, i, scale=0.3))
    return model


def lora_layers(model) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def deltas(model):
    """PEFT's own update per module, turned to [O, I]."""
    found = {}
    for path, layer in lora_layers(model).items():
        delta = layer.get_delta_weight("default").detach()
        is_turned = isinstance(layer.get_base_layer(), nn.Embedding) or getattr(layer, "fan_in_fan_out", False)
        found[path] = (delta.T if is_turned else delta.flatten(1)).double()
    return found


def assert_same_update(adapter: LoraAdapter, model):
    expected = deltas(model)
    assert adapter.pairs.keys() == expected.keys()
    for path, delta in expected.items():
        torch.testing.assert_close(dense_product(adapter.pairs[path]), delta, rtol=1e-5, atol=1e-6)


def output_of(model):
    with torch.no_grad():
        out = model(TOKENS)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("case", CASES)
def test_what_peft_saves_is_read_with_the_same_update(case, tmp_path):
    model = trained(case)
    model.save_pretrained(tmp_path)
    read = read_adapter(tmp_path)
    assert_same_update(read.adapter, model)
    assert read.adapter.ranks == {path: layer.r["default"] for path, layer in lora_layers(model).items()}


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_is_loaded_by_peft_with_the_same_update(case, tmp_path):
    model = trained(case)
    model.save_pretrained(tmp_path / "theirs")
    theirs = read_adapter(tmp_path / "theirs")
    write_adapter(tmp_path / "ours", theirs.adapter, theirs.config)
    # A missing or an unexpected key is a warning in PEFT, so an error here.
    loaded = PeftModel.from_pretrained(built(CASES[case][0]), str(tmp_path / "ours")).eval()
    assert {scale for layer in lora_layers(loaded).values() for scale in layer.scaling.values()} == {1.0}
    assert_same_update(theirs.adapter, loaded)
    torch.testing.assert_close(output_of(loaded), output_of(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_state_dict_of_a_model_is_read_with_its_scalings(case):
    model = trained(case)
    scalings = {path: layer.scaling["default"] for path, layer in lora_layers(model).items()}
    assert_same_update(from_state_dict(get_peft_model_state_dict(model), scalings), model)


def test_mixed_ranks_reach_exactly_the_modules_they_are_for(tmp_path):
    model = trained("every layer kind")
    model.save_pretrained(tmp_path / "theirs")
    theirs = read_adapter(tmp_path / "theirs")
    ranks = {path: 1 + i for i, path in enumerate(theirs.adapter.pairs)}
    mixed = resize(theirs.adapter, ranks)
    write_adapter(tmp_path / "ours", mixed, theirs.config)
    loaded = PeftModel.from_pretrained(built(Zoo), str(tmp_path / "ours"))
    assert {path: layer.r["default"] for path, layer in lora_layers(loaded).items()} == ranks
    assert {"layers.1", "layers.11", "x.layers.1"} < ranks.keys()
    assert_same_update(mixed, loaded)


def test_words_that_are_not_about_ranks_are_kept(tmp_path):
    trained("biases and a head").save_pretrained(tmp_path / "theirs")
    theirs = read_adapter(tmp_path / "theirs")
    write_adapter(tmp_path / "ours", theirs.adapter, theirs.config)
    ours = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    changed = {key for key in ours if ours[key] != theirs.config[key]}
    assert ours.keys() == theirs.config.keys()
    assert changed == {"lora_alpha"}
    assert set(theirs.adapter.dense) >= {"head.weight", "head.bias", "norm.weight", "layers.1.base_layer.bias"}


def test_grouped_convolution_saved_by_peft_is_refused(tmp_path):
    base = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.warns(UserWarning, match="groups > 1"):
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match="grouped convolution"):
        read_adapter(tmp_path)


def test_dora_saved_by_peft_is_refused(tmp_path):
    get_peft_model(built(Zoo), LoraConfig(r=2, target_modules=["1"], use_dora=True)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match="use_dora"):
        read_adapter(tmp_path)
