"""The laws of every codec in the table; a new codec is tested by being listed there."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, fold_scaling
from tasks.adapters.peft_files import to_state_dict
from tasks.adapters.thin import thin
from tasks.codecs.table import CODECS, picks, value_bytes, wire
from tasks.errors import AdapterFormatError, ConfigError, NonFiniteUpdateError, UnknownNameError
from tests.codecs.samples import EXAMPLE, MIXED, TRIP, near, vector
from tests.strategies import adapters

# Largest error of one number, from the change and the numbers themselves.
BOUNDS = {
    "fp32": lambda _, x: 0.0 * x.abs(),
    "fp16": lambda _, x: 2.0**-11 * x.abs() + 2.0**-25,
    "compact": lambda change, _: 0.501 * change.abs().max() / 127,
    "flasc": lambda change, _: change.abs().max(),
    "flocora": lambda _, x: 1.001 * (x.clamp(min=0).max() - x.clamp(max=0).min()) / 255,
    "laq": lambda change, _: change.abs().max() / 15,
    "aquila": lambda change, _: 0.5 * change.norm(),
    "ecolora": lambda change, _: change.abs().max(),
}
laws = settings(max_examples=25, derandomize=True, deadline=None)
every_codec = pytest.mark.parametrize("name", CODECS)


def round_trip(name: str, update: LoraAdapter, reference: LoraAdapter) -> LoraAdapter:
    codec = wire(name, {})
    return codec.decode(codec.encode(update, reference, None, TRIP)[0], reference, TRIP)


def message(name: str) -> bytes:
    return wire(name, {}).encode(near(EXAMPLE, 7), EXAMPLE, None, TRIP)[0]


def test_every_codec_has_its_laws():
    assert set(CODECS) == set(BOUNDS)
    assert all(name == entry.name and entry.title for name, entry in CODECS.items())


@every_codec
@laws
@given(update=adapters(), parts=st.sampled_from(("both", "a", "b", "none")), scale=st.sampled_from((1e-6, 1e-2, 3.0)))
def test_round_trip_stays_within_the_codec_s_bound(name, update, parts, scale):
    update, reference = thin(update, parts), thin(near(update, 5, scale), parts)
    decoded = round_trip(name, update, reference)
    x, known = vector(update), vector(reference)
    assert {pair.scaling for pair in decoded.pairs.values()} <= {1.0}
    assert {p: q.form for p, q in decoded.pairs.items()} == {p: q.form for p, q in update.pairs.items()}
    shapes = {key: t.shape for key, t in to_state_dict(decoded).items()}
    assert shapes == {key: t.shape for key, t in to_state_dict(fold_scaling(update)).items()}
    if x.numel():
        bound = BOUNDS[name](x - known, x) + 2.0**-22 * (x.abs().max() + known.abs().max())
        assert bool(((vector(decoded) - x).abs() <= bound).all())


@every_codec
def test_counters_pass_unchanged(name):
    decoded = round_trip(name, near(MIXED, 3), MIXED)
    assert decoded.dense["step"].dtype == torch.int64
    assert int(decoded.dense["step"]) == 8
    assert torch.equal(decoded.dense["seen"], torch.tensor([2, 3], dtype=torch.int32))


@every_codec
def test_first_state_may_be_absent_and_foreign_states_do_no_harm(name):
    codec, update = wire(name, {}), near(EXAMPLE, 7)
    plain, state = codec.encode(update, EXAMPLE, None, TRIP)
    foreign = {"layers.0": torch.ones(2), "head.bias": torch.ones(4)}
    assert codec.encode(update, EXAMPLE, foreign, TRIP)[0] == plain
    assert state is None or all(tensor.dtype == torch.float32 for tensor in state.values())


@every_codec
def test_encoding_is_deterministic_and_leaves_everything_alone(name):
    codec, update = wire(name, {}), near(MIXED, 3)
    _, state = codec.encode(update, MIXED, None, TRIP)
    lent = [to_state_dict(update), to_state_dict(MIXED), dict(state or {})]
    before = [{key: tensor.clone() for key, tensor in one.items()} for one in lent]
    first, second = (codec.encode(update, MIXED, state, TRIP) for _ in range(2))
    decoded = [to_state_dict(codec.decode(first[0], MIXED, TRIP)) for _ in range(2)]
    assert first[0] == second[0]
    assert all(torch.equal(decoded[0][key], decoded[1][key]) for key in decoded[0])
    assert all(torch.equal(one[key], old[key]) for one, old in zip(lent, before, strict=True) for key in old)


@every_codec
@laws
@given(data=st.data())
def test_truncated_message_is_refused(name, data):
    whole = message(name)
    with pytest.raises(AdapterFormatError):
        wire(name, {}).decode(whole[: data.draw(st.integers(0, len(whole) - 1))], EXAMPLE, TRIP)


@every_codec
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x80\x04pickle",
        b"\xff" * 64,
        b"RwUp",
        b"RwUp" + b"\0" * 64,
        (2**60).to_bytes(8, "little") + b"{}",
        b"\x02" + b"\0" * 7 + b"[]" + b"\0" * 8,
    ],
)
def test_garbled_message_is_refused(name, garbage):
    with pytest.raises(AdapterFormatError):
        wire(name, {}).decode(garbage, EXAMPLE, TRIP)


@every_codec
def test_message_with_trailing_bytes_is_refused(name):
    with pytest.raises(AdapterFormatError):
        wire(name, {}).decode(message(name) + b"\0" * 8, EXAMPLE, TRIP)


@every_codec
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_update_is_never_sent(name, value):
    broken = near(EXAMPLE, 7)
    broken = replace(broken, dense={**broken.dense, "head.bias": torch.tensor([0.0, value, 1.0])})
    with pytest.raises(NonFiniteUpdateError, match=r"head\.bias"):
        wire(name, {}).encode(broken, EXAMPLE, None, TRIP)


@pytest.mark.parametrize("written", CODECS)
@pytest.mark.parametrize("read", CODECS)
def test_another_codec_s_message_is_refused(written, read):
    if written != read:
        with pytest.raises(AdapterFormatError, match="another codec"):
            wire(read, {}).decode(message(written), EXAMPLE, TRIP)


@every_codec
def test_planned_bytes_are_those_of_a_message(name):
    update = LoraAdapter({}, {"head": torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))})
    size = len(wire(name, {}).encode(near(update, 3, 1.0), update, None, TRIP)[0])
    assert 0.6 < size / (value_bytes(name, {}) * 2**16) < 1.1  # plans do not count on entropy coding


def test_codecs_that_send_differences_say_so():
    for name, row in CODECS.items():
        if row.needs_reference:
            with pytest.raises(ConfigError, match="nothing that both ends hold"):
                wire(name, {}).encode(EXAMPLE, None, None, TRIP)
            with pytest.raises(AdapterFormatError, match="no reference"):
                wire(name, {}).decode(message(name), None, TRIP)
        else:
            codec = wire(name, {})
            decoded = codec.decode(codec.encode(EXAMPLE, None, None, TRIP)[0], None, TRIP)
            assert to_state_dict(decoded).keys() == to_state_dict(EXAMPLE).keys()


def test_codecs_that_choose_by_a_client_s_numbers_say_so():
    assert {name for name in CODECS if picks(name, {})} == {"flasc"}
    assert picks("compact", {"keep": 0.5})
    assert picks("compact", {"keep": 0.5, "select": "ranks"})
    assert not picks("compact", {"keep": 0.5, "select": "shared"})


def test_unknown_names_and_values_are_refused():
    with pytest.raises(UnknownNameError, match="fp16, fp32"):
        wire("fp23", {})
    with pytest.raises(ConfigError, match="has no options"):
        wire("fp32", {"bits": 8})
    with pytest.raises(ConfigError, match="bits"):
        wire("compact", {"bits": 7})
