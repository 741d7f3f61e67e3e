"""Pico transformers: two layers, width 32, saved to a folder as their publishers would, and loaded by path."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from tasks.data.examples import Examples, TensorExamples, TokenExamples
from tasks.training.models import BaseModelSpec
from tasks.training.randomness import seeded

VOCABULARY = 48
LABELS = ("zero", "one", "two")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = ("mlp", "cnn", "sequence_classification", "image_classification", "causal_lm")


def spec_of(kind: str, folder: Path) -> BaseModelSpec:
    """Return the spec of a small model of a kind; its files, if it has any, are written to the folder."""
    if kind in ("mlp", "cnn"):
        return BaseModelSpec(kind, label_names=LABELS, input_shape=(1, 8, 8), hidden_sizes=(24, 16))
    writer = {"sequence_classification": save_bert, "image_classification": save_vit, "causal_lm": save_llama}
    location = str(writer[kind](folder))
    return BaseModelSpec(kind, location=location, label_names=() if kind == "causal_lm" else LABELS)


def examples_of(kind: str, count: int = 24) -> Examples:
    """Return examples that a model of a kind can learn from."""
    rng = np.random.default_rng(7)
    labels = np.arange(count) % len(LABELS)
    if kind in ("mlp", "cnn", "image_classification"):
        shape = (3, 16, 16) if kind == "image_classification" else (1, 8, 8)
        pixels = rng.random((count, *shape)) * 0.2 + labels[:, None, None, None] / len(LABELS)
        return TensorExamples({"pixel_values": torch.tensor(pixels).float(), "labels": torch.tensor(labels)})
    rows = [[int(t) for t in rng.integers(4, VOCABULARY, size=rng.integers(3, 9))] for _ in range(count)]
    if kind == "causal_lm":
        return TokenExamples(rows, rows, pad_id=0)
    return TokenExamples([[4 + int(label), *row] for label, row in zip(labels, rows, strict=True)], labels, pad_id=0)


def save_bert(folder: Path) -> Path:
    """Save a BERT body without a classifier's head."""
    return _save(BertModel, BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **SMALL), folder)


def save_vit(folder: Path) -> Path:
    """Save a ViT body and its image processor's config."""
    _save(ViTModel, ViTConfig(image_size=16, patch_size=8, **SMALL), folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_llama(folder: Path) -> Path:
    """Save a Llama whose tokenizer has no pad token."""
    sizes = {"num_key_value_heads": 1, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    return _save(LlamaForCausalLM, LlamaConfig(vocab_size=VOCABULARY, **sizes, **SMALL), folder, pad=None)


def save_gpt2(folder: Path) -> Path:
    """Save a GPT-2, whose layers keep their weights transposed."""
    sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
    return _save(GPT2LMHeadModel, GPT2Config(vocab_size=VOCABULARY, **sizes), folder)


def _save(architecture: type, config: PretrainedConfig, folder: Path, pad: str | None = "<pad>") -> Path:
    with seeded(11):
        architecture(config).save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token=pad)
    fast.save_pretrained(folder)
    return folder
