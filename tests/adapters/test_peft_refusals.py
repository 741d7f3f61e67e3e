"""What a PEFT folder or blob says per module, and everything in one that must be refused."""

import json

import pytest
import torch
from safetensors.torch import save, save_file

from tasks.adapters.blob import MAX_HEADER_BYTES
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.peft_files import CONFIG_FILE, WEIGHTS_FILE, decode_adapter, folder_files, read_adapter
from tasks.errors import AdapterFormatError, UnsupportedAdapterError

PREFIX = "base_model.model."


def folder_with(tmp_path, config=None, **tensors):
    """A folder of one linear module, with other words in its config and other tensors beside or instead."""
    words = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **(config or {})}
    state = {"m.lora_A.weight": torch.ones(2, 4), "m.lora_B.weight": torch.ones(3, 2), **tensors}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(words))
    save_file({PREFIX + name: t for name, t in state.items() if t is not None}, tmp_path / WEIGHTS_FILE)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "rank", "scaling"),
    [
        ({}, 2, 2.0),
        ({"use_rslora": True}, 2, 4 / 2**0.5),
        ({"r": 8, "rank_pattern": {"m": 2}}, 2, 2.0),
        ({"r": 8, "rank_pattern": {"m": 2}, "alpha_pattern": {"m": 6}, "use_rslora": True}, 2, 6 / 2**0.5),
        ({"rank_pattern": {"other": 9}, "alpha_pattern": None}, 2, 2.0),
    ],
)
def test_rank_and_scaling_are_resolved_per_module(tmp_path, config, rank, scaling):
    pair = read_adapter(folder_with(tmp_path, config)).adapter.pairs["m"]
    assert (pair.rank, pair.scaling) == (rank, pytest.approx(scaling))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "base model"),
        ({"peft_type": "IA3"}, "another PEFT method"),
        ({"peft_type": None}, "another PEFT method"),
    ],
)
def test_peft_features_without_a_correct_aggregate_are_refused(tmp_path, config, match):
    with pytest.raises(UnsupportedAdapterError, match=match):
        read_adapter(folder_with(tmp_path, config))
    with pytest.raises(UnsupportedAdapterError, match=match):
        folder_files(LoraAdapter({"m": LoraPair(torch.ones(1, 2), torch.ones(3, 1))}), config)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"r": 0}, "r is not usable"),
        ({"r": None}, "r is not usable"),
        ({"r": 1.5}, "whole number"),
        ({"lora_alpha": "16"}, "lora_alpha is not usable"),
        ({"lora_alpha": float("nan")}, "lora_alpha is not usable"),
        ({"r": 3}, "rank is not the one in"),
        ({"rank_pattern": {"m": True}}, "rank_pattern is not usable"),
        ({"rank_pattern": [1]}, "rank_pattern is not usable"),
        ({"alpha_pattern": {"(": 1}}, "no regular expression"),
    ],
)
def test_config_that_does_not_fit_is_refused(tmp_path, config, match):
    with pytest.raises(AdapterFormatError, match=match):
        read_adapter(folder_with(tmp_path, config))


@pytest.mark.parametrize(
    ("tensors", "error", "match"),
    [
        ({"m.lora_magnitude_vector": torch.ones(3)}, UnsupportedAdapterError, "LoRA variant"),
        ({"m.lora_B.bias": torch.ones(3)}, UnsupportedAdapterError, "LoRA variant"),
        (
            {"m.lora_A.weight": torch.ones(2, 4, 3, 3), "m.lora_B.weight": torch.ones(6, 1, 1, 1)},
            UnsupportedAdapterError,
            "grouped convolution",
        ),
        ({"m.lora_B.weight": None}, AdapterFormatError, "one pair of factors"),
        ({"m.lora_embedding_A": torch.ones(2, 9)}, AdapterFormatError, "one pair of factors"),
        ({"m.lora_B.weight": torch.ones(3, 5)}, AdapterFormatError, "different ranks"),
        ({"m.lora_A.weight": torch.ones(8)}, AdapterFormatError, "no shape or dtype"),
        ({"m.lora_A.weight": torch.ones(0, 4)}, AdapterFormatError, "no shape or dtype"),
        ({"m.lora_A.weight": torch.ones(2, 4, dtype=torch.int8)}, AdapterFormatError, "no shape or dtype"),
        ({"m.lora_A.weight": torch.ones(2, 4, 3, 3)}, AdapterFormatError, "no shape or dtype"),
    ],
)
def test_tensors_that_form_no_adapter_are_refused(tmp_path, tensors, error, match):
    with pytest.raises(error, match=match):
        read_adapter(folder_with(tmp_path, **tensors))


def test_tensor_without_peft_s_prefix_is_refused():
    with pytest.raises(AdapterFormatError, match="not named as PEFT"):
        decode_adapter(save({"m.lora_A.weight": torch.ones(1, 1)}))


def test_pickled_weights_are_refused_unread(tmp_path):
    folder_with(tmp_path)
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UnsupportedAdapterError, match="pickle"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file_is_named(tmp_path, missing):
    (folder_with(tmp_path) / missing).unlink()
    with pytest.raises(AdapterFormatError, match=missing):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"LORA"', "\x00"])
def test_config_that_is_no_json_object_is_refused(tmp_path, text):
    (folder_with(tmp_path) / CONFIG_FILE).write_text(text)
    with pytest.raises(AdapterFormatError, match="is not"):
        read_adapter(tmp_path)


def blob_of(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def spec(start: int, end: int, dtype: str = "F32", size: int = 1) -> dict:
    return {"dtype": dtype, "shape": [size], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"short",
        (2**63).to_bytes(8, "little") + b"{}",
        blob_of({"t": spec(0, 4)}),
        blob_of({"t": spec(0, 4), "u": spec(0, 4)}, b"\0" * 4),
        blob_of({"t": spec(0, 4), "u": spec(8, 12)}, b"\0" * 12),
        blob_of({"t": spec(0, 4, size=2)}, b"\0" * 4),
        blob_of({"t": spec(0, 4, dtype="F31")}, b"\0" * 4),
        blob_of({"t": spec(0, 4, dtype="F4", size=8)}, b"\0" * 4),
        blob_of([]),
    ],
)
def test_damaged_blob_is_refused(data):
    with pytest.raises(AdapterFormatError, match="adapter blob"):
        decode_adapter(data)


def test_header_above_the_limit_is_refused_though_it_is_sound():
    header = json.dumps({"__metadata__": {}}).encode()
    for size, is_sound in ((MAX_HEADER_BYTES, True), (MAX_HEADER_BYTES + 8, False)):
        blob = size.to_bytes(8, "little") + header.ljust(size)
        if is_sound:
            assert not decode_adapter(blob).pairs
        else:
            with pytest.raises(AdapterFormatError, match="a header that cannot be"):
                decode_adapter(blob)
