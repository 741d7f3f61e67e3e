"""The plain codecs: a safetensors blob with PEFT's keys, in one floating dtype."""

import json
from dataclasses import replace

import pytest
import torch

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import to_state_dict
from tasks.codecs.table import wire
from tasks.errors import NonFiniteUpdateError
from tests.codecs.samples import EXAMPLE, TRIP

PLAIN = {"fp32": 4, "fp16": 2}
every_plain_codec = pytest.mark.parametrize("name", PLAIN)


def encoded(name: str, update: LoraAdapter) -> bytes:
    return wire(name, {}).encode(update, None, None, TRIP)[0]


def header_of(message: bytes) -> dict:
    size = int.from_bytes(message[:8], "little")
    return json.loads(message[8 : 8 + size])


@every_plain_codec
def test_message_is_a_safetensors_blob_with_peft_s_keys(name):
    assert set(header_of(encoded(name, EXAMPLE))) - {"__metadata__"} == {
        "base_model.model.layers.0.lora_A.weight",
        "base_model.model.layers.0.lora_B.weight",
        "base_model.model.head.bias",
        "base_model.model.norm.num_batches_tracked",
    }


@every_plain_codec
def test_message_costs_its_bytes_per_number_and_a_small_header(name):
    numbers = 4 * (40 + 50) + 3
    assert 0 < len(encoded(name, EXAMPLE)) - numbers * PLAIN[name] - 8 < 600


@every_plain_codec
def test_zero_update_comes_back_as_zeros(name):
    pairs = {p: replace(pair, a=pair.a * 0, b=pair.b * 0) for p, pair in EXAMPLE.pairs.items()}
    zero = LoraAdapter(pairs, {key: t * 0 for key, t in EXAMPLE.dense.items()})
    decoded = wire(name, {}).decode(encoded(name, zero), None, TRIP)
    assert all(not tensor.any() for tensor in to_state_dict(decoded).values())


@every_plain_codec
def test_state_passes_through(name):
    state = {"layers.0": torch.ones(2)}
    assert wire(name, {}).encode(EXAMPLE, EXAMPLE, state, TRIP)[1] is state


@pytest.mark.parametrize(("name", "dtype", "value"), [("fp16", torch.float32, 65_520.0), ("fp32", torch.float64, 1e39)])
def test_value_beyond_the_range_is_refused_not_made_infinite(name, dtype, value):
    large = LoraAdapter(EXAMPLE.pairs, {"head.bias": torch.tensor([1.0, value], dtype=dtype)})
    with pytest.raises(NonFiniteUpdateError, match="beyond the range"):
        encoded(name, large)


def test_largest_half_is_sent():
    edge = LoraAdapter(EXAMPLE.pairs, {"head.bias": torch.tensor([65_504.0])})
    decoded = wire("fp16", {}).decode(encoded("fp16", edge), None, TRIP)
    assert decoded.dense["head.bias"].item() == 65_504.0


def test_range_is_checked_after_folding():
    pair = replace(EXAMPLE.pairs["layers.0"], scaling=1e6)
    with pytest.raises(NonFiniteUpdateError, match="lora_B"):
        encoded("fp16", LoraAdapter({"layers.0": pair}))
