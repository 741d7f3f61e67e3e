"""Error feedback: nothing is lost between messages, nothing old bursts, nothing foreign is added."""

from dataclasses import replace

import pytest
import torch

from tasks.adapters.lora import LayerForm, LoraAdapter
from tasks.codecs.table import Trip, wire
from tasks.errors import NonFiniteUpdateError
from tests.codecs.samples import MIXED, TRIP, near, one_tensor, vector
from tests.strategies import normal, pair_of

CODECS = [
    ("compact", {"bits": 4}),
    ("compact", {"bits": 1, "residual_cap": 1e6}),
    ("compact", {"bits": 2, "scale": "group", "stochastic": 1, "residual_cap": 1e6}),
    ("compact", {"keep": 0.1, "bits": 16, "residual_cap": 1e6}),
    ("compact", {"keep": 0.3, "select": "ranks", "residual_cap": 1e6}),
    ("laq", {"bits": 2}),
    ("aquila", {}),
]


def as_adapter(state, layout: LoraAdapter) -> LoraAdapter:
    """Return a client's memory as an adapter of the given layout."""
    pairs = {p: replace(q, a=state[p + "::lora_A"], b=state[p + "::lora_B"]) for p, q in layout.pairs.items()}
    return LoraAdapter(pairs, {key: state.get(key, t) for key, t in layout.dense.items()})


@pytest.mark.parametrize(("name", "values"), CODECS)
def test_what_was_sent_and_what_is_left_are_all_differences(name, values):
    codec, state, reference = wire(name, values), None, near(MIXED, 1, 0.0)
    sent = meant = torch.zeros_like(vector(reference))
    for index in range(8):
        update, trip = near(reference, 100 + index, 1e-2), Trip(index, 7 * index)
        message, state = codec.encode(update, reference, state, trip)
        decoded = codec.decode(message, reference, trip)
        sent = sent + vector(decoded) - vector(reference)
        meant = meant + vector(update) - vector(reference)
        reference = near(decoded, 1, 0.0)
    residual = vector(as_adapter(state, reference))
    torch.testing.assert_close(sent + residual, meant, rtol=0.0, atol=5e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("compact", {"keep": 0.2, "select": "shared", "residual_cap": 1e6}),
        ("compact", {"keep": 0.25, "select": "rotating", "residual_cap": 1e6}),
        ("compact", {"bits": 2, "residual_cap": 0}),
        ("ecolora", {}),
    ],
)
def test_what_waits_for_its_turn_is_not_remembered(name, values):
    _, state = wire(name, values).encode(near(MIXED, 100, 1e-2), near(MIXED, 1, 0.0), None, TRIP)
    assert state is None


def test_memory_brings_what_top_k_left_out():
    codec, start, state = wire("compact", {"keep": 0.01, "bits": 32, "residual_cap": 1e6}), torch.zeros(200), None
    step = torch.linspace(0.5, 1.0, 200)
    share, sent = one_tensor(start), torch.zeros(200)
    for _ in range(300):
        message, state = codec.encode(one_tensor(step), share, state, TRIP)
        sent = sent + codec.decode(message, share, TRIP).dense["head"]
    assert float((sent / 300 - step).norm() / step.norm()) < 0.35
    assert int((sent == 0).sum()) == 0


@pytest.mark.parametrize("cap", [2.0, 10.0])
def test_memory_is_cut_to_a_multiple_of_the_change(cap):
    codec = wire("compact", {"bits": 32, "residual_cap": cap})
    share, update = one_tensor(torch.zeros(50)), one_tensor(normal((50,), 3, scale=1e-3))
    old = {"head": normal((50,), 4, scale=100.0)}
    message, _ = codec.encode(update, share, old, TRIP)
    added = codec.decode(message, share, TRIP).dense["head"] - update.dense["head"]
    assert float(added.norm()) == pytest.approx(cap * float(update.dense["head"].norm()), rel=1e-4)


def test_short_memory_is_added_whole():
    codec = wire("compact", {"bits": 32})
    share, update, old = one_tensor(torch.zeros(50)), one_tensor(normal((50,), 3)), {"head": normal((50,), 4)}
    decoded = codec.decode(codec.encode(update, share, old, TRIP)[0], share, TRIP)
    assert torch.equal(decoded.dense["head"], update.dense["head"] + old["head"])


def test_difference_beyond_float32_is_refused():
    codec = wire("compact", {})
    for state in (None, {"head": torch.ones(2)}):
        with pytest.raises(NonFiniteUpdateError, match="more than float32 holds"):
            codec.encode(one_tensor(torch.full((2,), 3e38)), one_tensor(torch.full((2,), -3e38)), state, TRIP)


def test_memory_of_another_rank_is_dropped():
    form, codec = LayerForm("linear", (30,)), wire("compact", {"keep": 0.2})
    old, new = (LoraAdapter({"q": pair_of(form, 20, rank, seed=1)}, {"bias": normal((9,), 2)}) for rank in (4, 6))
    _, state = codec.encode(near(old, 5), old, None, TRIP)
    assert state is not None
    kept = {"bias": state["bias"]}
    fresh, carried, expected = (codec.encode(near(new, 6), new, s, TRIP) for s in (None, state, kept))
    assert carried[0] == expected[0] != fresh[0]
    assert {key: t.shape for key, t in (carried[1] or {}).items()} == {
        "q::lora_A": (6, 30), "q::lora_B": (20, 6), "bias": (9,)
    }  # fmt: skip


def test_no_memory_where_none_is_asked_for():
    for codec in (wire("compact", {"residual_cap": 0, "bits": 1}), wire("flasc", {}), wire("flocora", {})):
        assert codec.encode(near(MIXED, 3), MIXED, None, TRIP)[1] is None
