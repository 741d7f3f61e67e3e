"""Thin messages: what is left out comes back from the side that knows it, and what does not fit is refused by name.

Messages of cores alone, and how many bytes each form costs: `test_thin_cores`.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.admission import admit
from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.thin import Parts, fill, thin
from tasks.codecs.table import CODECS, Trip, wire
from tasks.errors import UpdateRefusedError
from tests.strategies import adapters, normal, pair_of

FACTORS = ("a", "b")
EVERY = ("both", *FACTORS, "none")
BOUNDS = {"fp32": (0.0, 0.0), "fp16": (2**-11, 2**-25)}  # relative, and absolute below the normal range
laws = settings(max_examples=40, derandomize=True)
TRIP = Trip(round_index=1, seed=3)
FORM = LayerForm("linear", (5,))
WHOLE = LoraAdapter(
    {"layers.0": pair_of(FORM, 4, 2, seed=1), "layers.1": pair_of(FORM, 3, 2, seed=9)}, {"head.bias": normal((3,), 5)}
)


def changed(adapter: LoraAdapter) -> dict[str, LoraPair]:
    """Pairs of the same sizes with other numbers, as the other side holds them; scaling 1."""
    pairs = fold_scaling(adapter).pairs
    return {path: replace(pair, a=pair.a + 1.0, b=pair.b - 1.0) for path, pair in pairs.items()}


def tensors(adapter: LoraAdapter) -> list[torch.Tensor]:
    return [t for pair in adapter.pairs.values() for t in (pair.a, pair.b)] + list(adapter.dense.values())


def assert_same_bits(got: LoraAdapter, expected: LoraAdapter) -> None:
    assert (got.ranks, list(got.dense)) == (expected.ranks, list(expected.dense))
    for path, pair in expected.pairs.items():
        assert (got.pairs[path].form, got.pairs[path].scaling) == (pair.form, 1.0)
    assert all(torch.equal(x, y) for x, y in zip(tensors(got), tensors(expected), strict=True))


def refused(message: LoraAdapter, parts: Parts = "b") -> UpdateRefusedError:
    with pytest.raises(UpdateRefusedError) as caught:
        fill(message, WHOLE.pairs, parts, subject="client c07, round 3")
    return caught.value


@pytest.mark.parametrize("parts", EVERY)
@laws
@given(adapter=adapters())
def test_what_is_left_out_is_put_back(parts, adapter):
    folded = fold_scaling(adapter)
    back = fill(thin(adapter, parts), folded.pairs, parts, subject="client")
    assert_same_bits(fold_scaling(back), folded)


@pytest.mark.parametrize("factor", FACTORS)
@laws
@given(adapter=adapters())
def test_one_factor_comes_from_the_message_and_the_other_from_what_is_known(factor, adapter):
    sent, known = fold_scaling(adapter).pairs, changed(adapter)
    for path, pair in fill(thin(adapter, factor), known, factor, subject="client").pairs.items():
        assert torch.equal(pair.a, sent[path].a if factor == "a" else known[path].a)
        assert torch.equal(pair.b, sent[path].b if factor == "b" else known[path].b)


@pytest.mark.parametrize("parts", EVERY)
@laws
@given(adapter=adapters())
def test_message_holds_what_is_sent_and_no_number_more(parts, adapter):
    sizes = {"a": [p.a.numel() for p in adapter.pairs.values()], "b": [p.b.numel() for p in adapter.pairs.values()]}
    sizes |= {"both": sizes["a"] + sizes["b"], "none": []}
    message = thin(adapter, parts)
    whole = sum(t.numel() for t in adapter.dense.values())
    assert sum(t.numel() for t in tensors(message)) == sum(sizes[parts]) + whole
    assert bool(message.pairs) == (parts == "both")


@pytest.mark.parametrize("parts", EVERY)
@laws
@given(adapter=adapters())
def test_neither_side_is_written_to(parts, adapter):
    known = LoraAdapter(changed(adapter))
    message = thin(adapter, parts)
    before = [[t.clone() for t in tensors(one)] for one in (adapter, known, message)]
    fill(message, known.pairs, parts, subject="client")
    for kept, one in zip(before, (adapter, known, message), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(kept, tensors(one), strict=True))


def test_everything_sent_is_the_adapter_itself():
    assert thin(WHOLE, "both") is WHOLE
    assert fill(WHOLE, {}, "both", subject="client") is WHOLE


@pytest.mark.parametrize("factor", FACTORS)
def test_the_product_survives_under_any_scaling(factor):
    scaled = LoraAdapter({path: replace(pair, scaling=4.0) for path, pair in WHOLE.pairs.items()})
    known = fold_scaling(scaled).pairs
    for path, pair in fill(thin(scaled, factor), known, factor, subject="client").pairs.items():
        torch.testing.assert_close(pair.b @ pair.a, 4.0 * WHOLE.pairs[path].b @ WHOLE.pairs[path].a)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("parts", EVERY)
@laws
@given(adapter=adapters(dtypes=(torch.float32,)))
def test_every_codec_carries_thin_messages(name, parts, adapter):
    folded, reference = fold_scaling(adapter), thin(LoraAdapter(changed(adapter), adapter.dense), parts)
    message, _ = wire(name, {}).encode(thin(adapter, parts), reference, None, TRIP)
    back = fill(wire(name, {}).decode(message, reference, TRIP), folded.pairs, parts, subject="client")
    assert {path: pair.form for path, pair in back.pairs.items()} == {p: q.form for p, q in folded.pairs.items()}
    assert [t.shape for t in tensors(back)] == [t.shape for t in tensors(folded)]
    rtol, atol = BOUNDS.get(name, (0.0, float("inf")))  # how far the others may be off is for their own laws
    for got, expected in zip(tensors(back), tensors(folded), strict=True):
        torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_known_factor_is_not_rounded_by_the_codec(factor):
    message, _ = wire("fp16", {}).encode(thin(WHOLE, factor), None, None, TRIP)
    back = fill(wire("fp16", {}).decode(message, None, TRIP), WHOLE.pairs, factor, subject="client")
    for path, pair in back.pairs.items():
        assert torch.equal(pair.a, WHOLE.pairs[path].a) == (factor == "b")
        assert torch.equal(pair.b, WHOLE.pairs[path].b) == (factor == "a")


# --- what is refused ------------------------------------------------------------------------------------------


@laws
@given(data=st.data(), adapter=adapters(), factor=st.sampled_from(FACTORS))
def test_a_missing_factor_is_named(data, adapter, factor):
    path = data.draw(st.sampled_from(sorted(adapter.pairs)))
    kept = LoraAdapter({p: pair for p, pair in adapter.pairs.items() if p != path}, adapter.dense)
    with pytest.raises(UpdateRefusedError, match=f"client c07, module {path}: factor {factor} is missing") as caught:
        fill(thin(kept, factor), fold_scaling(adapter).pairs, factor, subject="client c07")
    assert caught.value.reason == "missing-tensor"


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_of_another_shape_is_named_with_both_shapes(factor):
    short = {path: replace(pair, a=pair.a[:1], b=pair.b[:, :1]) for path, pair in WHOLE.pairs.items()}
    error = refused(thin(LoraAdapter(short), factor), factor)
    assert error.reason == "wrong-shape"
    shapes = {"a": ("(1, 5)", "(2, 5)"), "b": ("(4, 1)", "(4, 2)")}[factor]
    assert f"client c07, round 3, module layers.0: factor {factor}" in str(error)
    assert all(shape in str(error) for shape in shapes)


def test_the_other_factor_does_not_pass_for_the_one_that_is_sent():
    assert refused(thin(WHOLE, "a")).reason == "missing-tensor"


def test_a_whole_adapter_does_not_pass_for_a_thin_one():
    assert refused(WHOLE).reason == "missing-tensor"


@pytest.mark.parametrize("parts", [*FACTORS, "none"])
def test_a_known_factor_that_is_sent_all_the_same_is_refused(parts):
    error = refused(LoraAdapter(WHOLE.pairs, thin(WHOLE, parts).dense), parts)
    assert error.reason == "unknown-tensor"
    assert "2 whole pair(s), the first is layers.0" in str(error)


def test_a_factor_of_a_module_nobody_asked_for_is_not_admitted():
    more = LoraAdapter({**WHOLE.pairs, "layers.2": WHOLE.pairs["layers.0"]}, WHOLE.dense)
    whole = fill(thin(more, "b"), WHOLE.pairs, "b", subject="client")
    with pytest.raises(UpdateRefusedError) as caught:
        admit(whole, WHOLE, subject="client")
    assert caught.value.reason == "unknown-tensor"
