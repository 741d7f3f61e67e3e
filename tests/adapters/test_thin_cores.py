"""Thin messages of cores alone, and what each form of exchange costs on the wire."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.admission import admit
from tasks.adapters.core import core_of, with_core
from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.thin import Parts, fill, thin
from tasks.codecs.table import Trip, wire
from tasks.errors import UpdateRefusedError
from tasks.local_methods.table import local_method
from tests.strategies import adapters, normal, pair_of

laws = settings(max_examples=40, derandomize=True)
TRIP = Trip(round_index=1, seed=3)
FORM = LayerForm("linear", (9,))
SUBJECT = "client c07, round 3"


def cored(adapter: LoraAdapter) -> LoraAdapter:
    """The same modules with a core in every pair; scalings stay."""
    pairs = {}
    for path, pair in adapter.pairs.items():
        bare = replace(pair, scaling=1.0)
        pairs[path] = replace(pair, b=with_core(bare, core_of(bare)).b)
    return LoraAdapter(pairs, adapter.dense)


def known(adapter: LoraAdapter) -> dict[str, LoraPair]:
    """What the other side has: the frozen `a`, with any `b`."""
    return {path: LoraPair(p.a, torch.zeros_like(p.b), 1.0, p.form) for path, p in adapter.pairs.items()}


WHOLE = cored(
    LoraAdapter(
        {"m": pair_of(FORM, 8, 3, seed=1), "n": pair_of(FORM, 7, 2, seed=9)},
        {"head.bias": normal((3,), 5)},
    )
)


def refused(message: LoraAdapter) -> UpdateRefusedError:
    with pytest.raises(UpdateRefusedError) as caught:
        fill(message, known(WHOLE), "core", subject=SUBJECT)
    return caught.value


@laws
@given(adapter=adapters())
def test_the_pair_comes_back_from_its_core_and_the_frozen_a(adapter):
    whole = cored(adapter)
    back, folded = fill(thin(whole, "core"), known(whole), "core", subject="client"), fold_scaling(whole)
    assert back.ranks == whole.ranks
    for path, pair in folded.pairs.items():
        got = back.pairs[path]
        assert torch.equal(got.a, pair.a)
        assert (got.form, got.scaling, got.b.dtype) == (pair.form, 1.0, pair.b.dtype)
        scale = max(1.0, float(pair.b.abs().max()))
        close = 1e-6 if pair.b.dtype == torch.float32 else 1e-13
        torch.testing.assert_close(got.b, pair.b, rtol=0, atol=close * scale)
    assert all(torch.equal(back.dense[name], t) for name, t in whole.dense.items())


@laws
@given(adapter=adapters(dtypes=(torch.float32,)))
def test_half_precision_costs_the_core_one_rounding_and_a_nothing(adapter):
    whole = cored(adapter)
    message, _ = wire("fp16", {}).encode(thin(whole, "core"), None, None, TRIP)
    back = fill(wire("fp16", {}).decode(message, None, TRIP), known(whole), "core", subject="client")
    for path, pair in fold_scaling(whole).pairs.items():
        core = core_of(pair)
        assert torch.equal(back.pairs[path].a, pair.a)
        close = (2**-11 + 1e-6) * max(1e-3, float(core.abs().max()))
        torch.testing.assert_close(core_of(back.pairs[path]), core, rtol=0, atol=close)


def test_neither_side_is_written_to():
    before = {path: (p.a.clone(), p.b.clone()) for path, p in WHOLE.pairs.items()}
    other = known(WHOLE)
    fill(thin(WHOLE, "core"), other, "core", subject="client")
    assert all(torch.equal(p.a, before[m][0]) and torch.equal(p.b, before[m][1]) for m, p in WHOLE.pairs.items())
    assert not any(pair.b.any() for pair in other.values())


# --- what is refused ------------------------------------------------------------------------------------------


def test_a_missing_core_is_named():
    error = refused(thin(LoraAdapter({"n": WHOLE.pairs["n"]}), "core"))
    assert error.reason == "missing-tensor"
    assert f"{SUBJECT}, module m: the core is missing" in str(error)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (9,), (8, 3)])
def test_a_core_of_another_shape_is_named_with_both_shapes(shape):
    message = thin(WHOLE, "core")
    error = refused(LoraAdapter({}, {**message.dense, "m::core": torch.ones(shape)}))
    assert error.reason == "wrong-shape"
    assert f"module m: the core does not have the share's shape; got {shape}; expected (3, 3)" in str(error)


@pytest.mark.parametrize("parts", ["a", "b"])
def test_a_factor_does_not_pass_for_a_core(parts):
    assert refused(thin(WHOLE, parts)).reason == "missing-tensor"


def test_whole_pairs_beside_the_cores_are_refused():
    error = refused(LoraAdapter(WHOLE.pairs, thin(WHOLE, "core").dense))
    assert error.reason == "unknown-tensor"
    assert "the core of every pair alone" in str(error)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(torch.ones(3, 3, dtype=torch.int32), "wrong-dtype"), (torch.full((3, 3), float("nan")), "non-finite")],
)
def test_cores_that_are_no_numbers_are_not_admitted(value, reason):
    message = thin(WHOLE, "core")
    back = fill(LoraAdapter({}, {**message.dense, "m::core": value}), known(WHOLE), "core", subject=SUBJECT)
    with pytest.raises(UpdateRefusedError) as caught:
        admit(back, WHOLE, subject=SUBJECT)
    assert caught.value.reason == reason


# --- bytes ----------------------------------------------------------------------------------------------------


def payload(adapter: LoraAdapter, parts: Parts) -> int:
    """Bytes of a float32 message without its header."""
    message, _ = wire("fp32", {}).encode(thin(adapter, parts), None, None, TRIP)
    return len(message) - 8 - int.from_bytes(message[:8], "little")


# Two modules [O, I] of ranks 3 and 2, and a head of three numbers: (8, 9) and (7, 9).
DENSE = 4 * 3
A_BYTES, B_BYTES, CORE_BYTES = 4 * (3 * 9 + 2 * 9), 4 * (3 * 8 + 2 * 7), 4 * (3**2 + 2**2)


@pytest.mark.parametrize(
    ("parts", "size"),
    [("both", A_BYTES + B_BYTES), ("a", A_BYTES), ("b", B_BYTES), ("core", CORE_BYTES), ("none", 0)],
)
def test_a_message_costs_what_the_table_of_forms_says(parts, size):
    assert payload(WHOLE, parts) == size + DENSE


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("lora", [A_BYTES + B_BYTES] * 4),
        ("ffa", [B_BYTES] * 4),
        ("alternating", [B_BYTES, A_BYTES, B_BYTES, A_BYTES]),
    ],
)
def test_uploads_of_what_a_round_trains_cost_that_factor(name, sizes):
    row = local_method(name)
    assert [payload(WHOLE, row.trains_in(done)) for done in range(4)] == [size + DENSE for size in sizes]
