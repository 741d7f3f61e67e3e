"""The laws of every codec in the table; a new codec is tested by being listed there."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LayerForm, LoraAdapter, fold_scaling
from tasks.adapters.peft_files import to_state_dict
from tasks.codecs.table import CODECS, codec
from tasks.errors import AdapterFormatError, NonFiniteUpdateError, UnknownNameError
from tests.strategies import adapters, normal, pair_of

SINGLE = (torch.float32,)
BOUNDS = {"fp32": (0.0, 0.0), "fp16": (2**-11, 2**-25)}  # relative, and absolute below the normal range
BYTES_PER_NUMBER = {"fp32": 4, "fp16": 2}
laws = settings(max_examples=30, derandomize=True)
every_codec = pytest.mark.parametrize("name", CODECS)
EXAMPLE = LoraAdapter(
    {"layers.0": pair_of(LayerForm("linear", (40,)), 50, 4, seed=1, scaling=2.0)},
    {"head.bias": normal((3,), 5), "norm.num_batches_tracked": torch.tensor(2**40 + 1)},
)


def zeroed(adapter: LoraAdapter) -> LoraAdapter:
    pairs = {p: replace(pair, a=pair.a * 0, b=pair.b * 0) for p, pair in adapter.pairs.items()}
    return LoraAdapter(pairs, {name: t * 0 for name, t in adapter.dense.items()})


def header_of(message: bytes) -> dict:
    size = int.from_bytes(message[:8], "little")
    return json.loads(message[8 : 8 + size])


def test_every_codec_has_its_laws():
    assert set(CODECS) == set(BOUNDS) == set(BYTES_PER_NUMBER)
    assert all(name == entry.name and entry.title for name, entry in CODECS.items())


@every_codec
@laws
@given(update=adapters(dtypes=SINGLE))
def test_round_trip_stays_within_the_codec_s_bound(name, update):
    message, _ = codec(name).encode(update, update, None)
    decoded = codec(name).decode(message, update)
    rtol, atol = BOUNDS[name]
    sent, received = to_state_dict(fold_scaling(update)), to_state_dict(decoded)
    assert received.keys() == sent.keys()
    assert {pair.scaling for pair in decoded.pairs.values()} == {1.0}
    assert {path: pair.form for path, pair in decoded.pairs.items()} == {
        path: pair.form for path, pair in update.pairs.items()
    }
    for key, tensor in sent.items():
        torch.testing.assert_close(received[key], tensor, rtol=rtol, atol=atol)


@every_codec
def test_zero_update_comes_back_as_zeros(name):
    zero = zeroed(EXAMPLE)
    decoded = codec(name).decode(codec(name).encode(zero, EXAMPLE, None)[0], EXAMPLE)
    assert all(not tensor.any() for tensor in to_state_dict(decoded).values())


@every_codec
def test_counters_pass_unchanged(name):
    decoded = codec(name).decode(codec(name).encode(EXAMPLE, EXAMPLE, None)[0], EXAMPLE)
    counter = decoded.dense["norm.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert int(counter) == 2**40 + 1


@every_codec
def test_state_passes_through(name):
    state = {"layers.0": torch.ones(2)}
    assert codec(name).encode(EXAMPLE, EXAMPLE, state)[1] is state
    assert codec(name).encode(EXAMPLE, EXAMPLE, None)[1] is None


@every_codec
def test_encoding_is_deterministic_and_leaves_the_update_alone(name):
    before = {key: tensor.clone() for key, tensor in to_state_dict(EXAMPLE).items()}
    first, second = (codec(name).encode(EXAMPLE, EXAMPLE, None)[0] for _ in range(2))
    assert first == second
    assert all(torch.equal(tensor, before[key]) for key, tensor in to_state_dict(EXAMPLE).items())


@every_codec
def test_message_is_a_safetensors_blob_with_peft_s_keys(name):
    header = header_of(codec(name).encode(EXAMPLE, EXAMPLE, None)[0])
    assert set(header) - {"__metadata__"} == {
        "base_model.model.layers.0.lora_A.weight",
        "base_model.model.layers.0.lora_B.weight",
        "base_model.model.head.bias",
        "base_model.model.norm.num_batches_tracked",
    }


@every_codec
def test_message_costs_its_bytes_per_number_and_a_small_header(name):
    numbers = 4 * (40 + 50) + 3
    size = len(codec(name).encode(EXAMPLE, EXAMPLE, None)[0])
    assert 0 < size - numbers * BYTES_PER_NUMBER[name] - 8 < 600


@every_codec
@laws
@given(data=st.data())
def test_truncated_message_is_refused(name, data):
    message, _ = codec(name).encode(EXAMPLE, EXAMPLE, None)
    kept = data.draw(st.integers(0, len(message) - 1))
    with pytest.raises(AdapterFormatError):
        codec(name).decode(message[:kept], EXAMPLE)


@every_codec
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x80\x04pickle",
        b"\xff" * 64,
        (2**60).to_bytes(8, "little") + b"{}",
        b"\x02" + b"\0" * 7 + b"[]" + b"\0" * 8,
    ],
)
def test_garbled_message_is_refused(name, garbage):
    with pytest.raises(AdapterFormatError):
        codec(name).decode(garbage, EXAMPLE)


@every_codec
def test_message_with_trailing_bytes_is_refused(name):
    message, _ = codec(name).encode(EXAMPLE, EXAMPLE, None)
    with pytest.raises(AdapterFormatError):
        codec(name).decode(message + b"\0" * 8, EXAMPLE)


@every_codec
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_update_is_never_sent(name, value):
    broken = LoraAdapter(EXAMPLE.pairs, {"head.bias": torch.tensor([0.0, value])})
    with pytest.raises(NonFiniteUpdateError, match=r"head\.bias"):
        codec(name).encode(broken, EXAMPLE, None)


@pytest.mark.parametrize(("name", "dtype", "value"), [("fp16", torch.float32, 65_520.0), ("fp32", torch.float64, 1e39)])
def test_value_beyond_the_range_is_refused_not_made_infinite(name, dtype, value):
    large = LoraAdapter(EXAMPLE.pairs, {"head.bias": torch.tensor([1.0, value], dtype=dtype)})
    with pytest.raises(NonFiniteUpdateError, match="beyond the range"):
        codec(name).encode(large, EXAMPLE, None)


def test_largest_half_is_sent():
    edge = LoraAdapter(EXAMPLE.pairs, {"head.bias": torch.tensor([65_504.0])})
    decoded = codec("fp16").decode(codec("fp16").encode(edge, EXAMPLE, None)[0], EXAMPLE)
    assert decoded.dense["head.bias"].item() == 65_504.0


def test_range_is_checked_after_folding():
    pair = replace(EXAMPLE.pairs["layers.0"], scaling=1e6)
    with pytest.raises(NonFiniteUpdateError, match="lora_B"):
        codec("fp16").encode(LoraAdapter({"layers.0": pair}), EXAMPLE, None)


@pytest.mark.parametrize(("written", "read"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_another_codec_s_message_is_refused(written, read):
    message, _ = codec(written).encode(EXAMPLE, EXAMPLE, None)
    with pytest.raises(AdapterFormatError, match="another codec"):
        codec(read).decode(message, EXAMPLE)


def test_unknown_codec_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="fp16, fp32"):
        codec("fp23")
