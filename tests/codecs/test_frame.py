"""What a receiver refuses: damage, another reference, more than its reference allows, headers that lie."""

import json

import pytest
import torch

from tasks.adapters.lora import LayerForm, LoraAdapter
from tasks.adapters.peft_files import to_state_dict
from tasks.codecs.frame import Frame, digest_of, open_frame, seal
from tasks.codecs.header import to_header
from tasks.codecs.layout import layout_of
from tasks.codecs.table import CODECS, Trip, wire
from tasks.errors import AdapterFormatError, AdapterShapeError
from tests.codecs.samples import EXAMPLE, MIXED, TRIP, near
from tests.strategies import normal, pair_of

FRAMED = [name for name in CODECS if name not in ("fp32", "fp16")]
DIFFERENCES = [name for name in FRAMED if name != "flocora"]
HEADER_FLAG = 2
every_framed_codec = pytest.mark.parametrize("name", FRAMED)
every_difference = pytest.mark.parametrize("name", DIFFERENCES)


def encoded(name: str, update: LoraAdapter, reference: LoraAdapter | None, trip: Trip = TRIP) -> bytes:
    return wire(name, {}).encode(update, reference, None, trip)[0]


def refused(name: str, message: bytes, reference: LoraAdapter | None) -> str:
    with pytest.raises(AdapterFormatError) as caught:
        wire(name, {}).decode(message, reference, TRIP)
    return str(caught.value)


@every_framed_codec
def test_every_flipped_byte_is_refused(name):
    message = encoded(name, near(EXAMPLE, 7), EXAMPLE)
    for i in range(len(message)):
        refused(name, message[:i] + bytes([message[i] ^ 0x10]) + message[i + 1 :], EXAMPLE)


@every_difference
def test_foreign_reference_is_refused(name):
    message = encoded(name, near(EXAMPLE, 7), EXAMPLE)
    assert "another reference" in refused(name, message, near(EXAMPLE, 8))
    assert "another reference" in refused(name, message, MIXED)


@every_framed_codec
def test_update_that_does_not_fit_its_reference_is_not_written(name):
    other = LoraAdapter({"layers.0": pair_of(LayerForm("linear", (40,)), 50, 5, seed=1)}, EXAMPLE.dense)
    with pytest.raises(AdapterShapeError, match="modules, ranks and tensors"):
        encoded(name, other, EXAMPLE)


@every_difference
def test_nothing_new_is_a_short_message_and_exactly_the_reference(name):
    message = encoded(name, MIXED, MIXED)
    assert len(message) < 200
    decoded = to_state_dict(wire(name, {}).decode(message, MIXED, TRIP))
    folded = to_state_dict(wire("fp32", {}).decode(encoded("fp32", MIXED, None), None, TRIP))
    assert all(torch.equal(decoded[key], folded[key]) for key in folded)


@every_difference
@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize("body", [b"", b"\0" * 40, b"\xff" * 40, b"\x01" * 4000, bytes(range(256)) * 40])
def test_forged_body_is_refused_or_reads_as_an_update_of_the_reference_s_size(name, flags, body):
    honest = open_frame(name, encoded(name, near(EXAMPLE, 7), EXAMPLE))
    forged = seal(name, Frame(flags, honest.digest, body))
    try:
        decoded = wire(name, {}).decode(forged, EXAMPLE, TRIP)
    except AdapterFormatError:
        return
    assert layout_of(decoded) == layout_of(EXAMPLE)


@every_difference
def test_more_than_the_reference_holds_is_refused(name):
    honest = open_frame(name, encoded(name, near(EXAMPLE, 7), EXAMPLE))
    longer = seal(name, Frame(honest.flags, honest.digest, honest.body + b"\0"))
    assert "longer" in refused(name, longer, EXAMPLE)


@every_difference
def test_header_does_not_get_a_difference_past_its_reference(name):
    honest = open_frame(name, encoded(name, near(EXAMPLE, 7), EXAMPLE))
    header = to_header(layout_of(EXAMPLE))
    body = len(header).to_bytes(4, "little") + header + honest.body.ljust(600, b"\0")
    forged = seal(name, Frame(honest.flags | HEADER_FLAG, honest.digest, body))
    assert "as no difference has" in refused(name, forged, near(EXAMPLE, 8))


def test_top_k_refuses_more_numbers_than_the_codec_sends():
    wide = LoraAdapter({}, {"head": torch.zeros(100)})
    honest = wire("flasc", {"keep": 0.5}).encode(LoraAdapter({}, {"head": torch.ones(100)}), wide, None, TRIP)[0]
    assert "too many numbers" in refused("flasc", honest, wide)


# --- to an end that holds nothing --------------------------------------------------------------------------------


def headed(document: object, body: bytes = b"\0" * 64) -> bytes:
    header = json.dumps(document, separators=(",", ":")).encode()
    content = len(header).to_bytes(4, "little") + header + body
    return seal("flocora", Frame(HEADER_FLAG, digest_of(header), content))


def test_header_brings_names_shapes_and_forms():
    codec = wire("flocora", {})
    message, _ = codec.encode(MIXED, None, None, TRIP)
    assert layout_of(codec.decode(message, None, TRIP)) == layout_of(MIXED)
    assert layout_of(codec.decode(message, near(MIXED, 3), TRIP)) == layout_of(MIXED)
    assert "modules, ranks and tensors" in refused("flocora", message, EXAMPLE)


def test_message_without_a_header_needs_the_reference():
    assert "no reference" in refused("flocora", encoded("flocora", MIXED, MIXED), None)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        [],
        [[], []],
        [[], [["x", [2**40]]], []],
        [[], [["x", [-1]]], []],
        [[], [["x", [1.0]]], []],
        [[], [["x", [True]]], []],
        [[], [[["x"], [1]]], []],
        [[], [["x", [1]], ["x", [1]]], []],
        [[], [["y", [1]], ["x", [1]]], []],
        [[], [], [["n", [1], "object"]]],
        [[], [], [["n", [1], ["int64"]]]],
        [[["p", "linear", [3], [], [2, 3], [4, 1]]], [], []],
        [[["p", "linear", [5], [], [2, 3], [4, 2]]], [], []],
        [[["p", "magic", [3], [], [2, 3], [4, 2]]], [], []],
        [[["p", "linear", [3], [], [0, 3], [4, 0]]], [], []],
    ],
)
def test_impossible_header_is_refused(document):
    refused("flocora", headed(document), None)


@pytest.mark.parametrize("numbers", [600, 2**20, 2**33])
def test_header_cannot_claim_more_numbers_than_the_message_has_bits(numbers):
    assert "shorter than its header says" in refused("flocora", headed([[], [["x", [numbers]]], []]), None)


def test_deep_or_large_headers_are_refused():
    for header in (b"[" * 100_000, b"[" + b" " * (1 << 20) + b"]"):
        content = len(header).to_bytes(4, "little") + header
        refused("flocora", seal("flocora", Frame(HEADER_FLAG, digest_of(header), content)), None)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_adapters_survive_the_way_to_an_end_that_holds_nothing(value):
    flat = LoraAdapter({}, {"head": torch.full((4, 3000), value), "bias": normal((3,), 1)})
    codec = wire("flocora", {})
    decoded = codec.decode(codec.encode(flat, None, None, TRIP)[0], None, TRIP)
    assert torch.equal(decoded.dense["head"], flat.dense["head"])
    assert torch.equal(decoded.dense["bias"], flat.dense["bias"])


def test_header_is_the_same_for_the_same_layout():
    assert to_header(layout_of(MIXED)) == to_header(layout_of(near(MIXED, 4)))
