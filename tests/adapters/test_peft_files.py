"""Our own files: determinism, and the laws of writing and reading back."""

import json

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.peft_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    decode_adapter,
    encode_adapter,
    folder_files,
    from_state_dict,
    read_adapter,
    to_state_dict,
    write_adapter,
)
from tasks.adapters.products import adapter_distance, adapter_norm
from tasks.errors import AdapterFormatError, AdapterShapeError, ConfigError
from tests.strategies import FLOATS, adapters, normal, pair_of

laws = settings(max_examples=40, derandomize=True)
EXAMPLE = LoraAdapter(
    {
        "layers.1": pair_of(LayerForm("linear", (4,)), 3, 2, seed=1, scaling=0.5),
        "layers.11": pair_of(LayerForm("linear", (4,)), 3, 4, seed=2),
        "x.layers.1": pair_of(LayerForm("linear", (4,)), 3, 3, seed=3),
    },
    {"head.weight": normal((2, 3), 4)},
)
BASE = {"base_model_name_or_path": "base", "target_modules": {"1", "11"}, "bias": "none", "task_type": "SEQ_CLS"}


def assert_same_tensors(got, expected):
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert got[key].dtype == tensor.dtype
        assert torch.equal(got[key], tensor), key


@laws
@given(adapters(dtypes=(*FLOATS, torch.float16, torch.bfloat16)))
def test_blob_round_trip_is_lossless_up_to_folding(adapter):
    back = decode_adapter(encode_adapter(adapter))
    assert_same_tensors(to_state_dict(back), to_state_dict(fold_scaling(adapter)))
    assert {p: pair.form for p, pair in back.pairs.items()} == {p: pair.form for p, pair in adapter.pairs.items()}


@laws
@given(adapters())
def test_state_dict_round_trip_is_lossless(adapter):
    scalings = {path: pair.scaling for path, pair in adapter.pairs.items()}
    back = from_state_dict(to_state_dict(adapter), scalings)
    assert_same_tensors(to_state_dict(back), to_state_dict(adapter))
    assert {path: pair.scaling for path, pair in back.pairs.items()} == scalings


@laws
@given(adapter=adapters())
def test_folder_round_trip_keeps_every_product(adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_adapter(folder, adapter, BASE)
    back = read_adapter(folder).adapter
    assert back.ranks == adapter.ranks
    assert adapter_distance(back, adapter) <= 1e-6 * adapter_norm(adapter)
    assert_same_tensors(dict(back.dense), dict(adapter.dense))


def test_state_dict_adapter_is_a_copy():
    state = to_state_dict(EXAMPLE)
    mine = {key: tensor.clone() for key, tensor in state.items()}
    adapter = from_state_dict(mine)
    for tensor in mine.values():
        tensor.zero_()
    assert_same_tensors(to_state_dict(adapter), state)


def test_state_dict_without_a_scaling_for_each_module_is_refused():
    with pytest.raises(AdapterShapeError, match=r"module layers\.11: no scaling"):
        from_state_dict(to_state_dict(EXAMPLE), {"layers.1": 1.0, "x.layers.1": 1.0})


def test_files_are_the_same_bytes_every_time_and_in_any_order():
    turned = LoraAdapter(dict(sorted(EXAMPLE.pairs.items(), reverse=True)), EXAMPLE.dense)
    metadata = {f"key-{i}": "value" for i in range(20)}
    assert folder_files(turned, dict(reversed(BASE.items()))) == folder_files(EXAMPLE, BASE)
    assert encode_adapter(turned, dict(reversed(metadata.items()))) == encode_adapter(EXAMPLE, metadata)


def test_blob_is_read_by_safetensors_itself_and_carries_metadata():
    blob = encode_adapter(EXAMPLE, {"round": "3", "café": "ü"})
    assert_same_tensors(load(blob), to_state_dict(fold_scaling(EXAMPLE)))
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert header["__metadata__"] == {"format": "pt", "round": "3", "café": "ü"}
    assert int.from_bytes(blob[:8], "little") % 8 == 0


def test_tensors_that_share_memory_are_written():
    a, b = normal((2, 4), 1), normal((3, 2), 2)
    shared = LoraAdapter({"m": LoraPair(a, b), "n": LoraPair(a, b.clone().T.contiguous().T)}, {"view": a[0]})
    assert_same_tensors(load(encode_adapter(shared)), to_state_dict(shared))


def test_config_says_one_scaling_and_the_ranks_that_differ():
    config = json.loads(folder_files(EXAMPLE, {**BASE, "use_rslora": True, "rank_pattern": {"old": 9}})[CONFIG_FILE])
    pattern = {"^layers\\.1": 2, "^x\\.layers\\.1": 3}
    assert config == {
        **BASE,
        "target_modules": ["1", "11"],
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
    }


@pytest.mark.parametrize("target", [None, [], ["11"], "all-linear", r"layers\.\d+"])
def test_target_modules_that_miss_a_module_become_the_exact_paths(target):
    config = json.loads(folder_files(EXAMPLE, {**BASE, "target_modules": target})[CONFIG_FILE])
    assert config["target_modules"] == ["layers.1", "layers.11", "x.layers.1"]


@pytest.mark.parametrize("target", [["1", "11"], r".*layers\.\d+", ["layers.1", "layers.11"]])
def test_target_modules_that_reach_every_module_are_kept(target):
    assert (
        json.loads(folder_files(EXAMPLE, {**BASE, "target_modules": target})[CONFIG_FILE])["target_modules"] == target
    )


def test_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_adapter(tmp_path, EXAMPLE, BASE)
    with pytest.raises(ConfigError, match="not empty"):
        write_adapter(tmp_path / "precious.txt", EXAMPLE, BASE)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_empty_folder_and_missing_parents_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deeper"):
        write_adapter(folder, EXAMPLE, BASE)
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
        assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(AdapterFormatError, match="JSON"):
        write_adapter(tmp_path / "out", EXAMPLE, {**BASE, "task_type": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_adapter(tmp_path / "file" / "out", EXAMPLE, BASE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_adapter_without_modules_is_not_written():
    with pytest.raises(AdapterFormatError, match="no LoRA module"):
        folder_files(LoraAdapter({}, {"head.weight": torch.ones(2)}), BASE)
