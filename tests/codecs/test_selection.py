"""Which numbers are sent: how many, which of equals, and the same ones at both ends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair
from tasks.codecs.selection import largest
from tasks.codecs.table import Trip, wire
from tests.codecs.samples import MIXED, TRIP, near, one_tensor, vector
from tests.strategies import normal

laws = settings(max_examples=60, derandomize=True, deadline=None)


def sent(values, update: LoraAdapter, reference: LoraAdapter, trip: Trip = TRIP) -> torch.Tensor:
    codec = wire("compact", {"bits": 32, **values})
    decoded = codec.decode(codec.encode(update, reference, None, trip)[0], reference, trip)
    return vector(decoded) - vector(reference)


@laws
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=40), data=st.data())
def test_largest_are_a_stable_sort_s_first(sizes, data):
    count = data.draw(st.integers(1, len(sizes)))
    expected = sorted(sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))[:count])
    assert largest(np.array(sizes), count).tolist() == expected


@laws
@given(
    keep=st.sampled_from((1e-5, 0.1, 0.25, 0.9)),
    values=st.lists(st.floats(-9, 9, width=32, allow_subnormal=False), min_size=1, max_size=60),
)
def test_top_k_contracts(keep, values):
    x = torch.tensor(values)
    left = x - sent({"keep": keep}, one_tensor(x), one_tensor(torch.zeros_like(x)))
    count = max(int(keep * len(values)), 1)
    assert float(left.square().sum()) <= (1 - count / len(values)) * float(x.double().square().sum()) * (1 + 1e-6)
    assert int((left != x).sum()) <= count


def test_top_k_sends_one_number_at_least_and_the_first_of_equals():
    update = one_tensor(torch.tensor([0.5, -1.0, 1.0, 1.0]))
    share = one_tensor(torch.zeros(4))
    assert sent({"keep": 0.01}, update, share).tolist() == [0.0, -1.0, 0.0, 0.0]
    assert sent({"keep": 0.5}, update, share).tolist() == [0.0, -1.0, 1.0, 0.0]


def pair(a: list[list[float]], b: list[list[float]]) -> LoraPair:
    return LoraPair(torch.tensor(a), torch.tensor(b), 1.0, LayerForm("linear", (2,)))


@pytest.mark.parametrize("gauge", [1.0, 64.0, 1 / 64])
def test_rank_slots_go_by_what_their_product_changes(gauge):
    # Slot 1 changes less in its factors, yet more in its product: its a is 100 times longer.
    share = LoraAdapter({"q": pair([[1.0, 0.0], [100.0 * gauge, 0.0]], [[1.0, 1.0 / gauge]])}, {"bias": torch.zeros(2)})
    update = LoraAdapter(
        {"q": pair([[1.0, 0.0], [100.0 * gauge, 0.0]], [[1.5, 1.25 / gauge]])}, {"bias": torch.ones(2)}
    )
    codec = wire("compact", {"keep": 0.5, "select": "ranks", "bits": 32})
    decoded = codec.decode(codec.encode(update, share, None, TRIP)[0], share, TRIP)
    assert decoded.pairs["q"].b.tolist() == [[1.0, 1.25 / gauge]]
    assert decoded.dense["bias"].tolist() == [1.0, 1.0]  # dense tensors have no slots: always whole


def test_whole_slots_are_sent_or_none_of_it():
    codec, update = wire("compact", {"keep": 0.4, "select": "ranks", "bits": 32}), near(MIXED, 5)
    share = near(MIXED, 1, 0.0)
    decoded = codec.decode(codec.encode(update, share, None, TRIP)[0], share, TRIP)
    kept = numbers = 0
    for path, got in decoded.pairs.items():
        a, b = (got.a != share.pairs[path].a), (got.b != share.pairs[path].b)
        assert a.any(dim=1).tolist() == b.any(dim=0).tolist()
        kept += int(a.any(dim=1).sum()) * (a.shape[1] + b.shape[0])
        numbers += a.numel() + b.numel()
    assert 0 < kept <= 0.4 * numbers


def test_shared_places_are_the_same_for_everyone_and_new_every_round():
    share = one_tensor(torch.zeros(1000))
    first, second = (sent({"keep": 0.1, "select": "shared"}, one_tensor(normal((1000,), s)), share) for s in (1, 2))
    later = sent({"keep": 0.1, "select": "shared"}, one_tensor(normal((1000,), 1)), share, Trip(4, 99))
    assert ((first != 0) == (second != 0)).all()
    assert int((first != 0).sum()) == 100
    assert 0 < int(((first != 0) & (later != 0)).sum()) < 40


@pytest.mark.parametrize(("keep", "segments"), [(0.25, 4), (0.3, 3), (0.9, 1), (0.01, 100)])
def test_segments_take_turns_and_cover_everything_once(keep, segments):
    update, share = one_tensor(normal((37,), 1)), one_tensor(torch.zeros(37))
    rounds = [sent({"keep": keep, "select": "rotating"}, update, share, Trip(i, 0)) for i in range(segments)]
    assert torch.equal(torch.stack(rounds).sum(dim=0), vector(update))
    assert sum(int((one != 0).sum()) for one in rounds) == 37


@pytest.mark.parametrize("select", ["shared", "rotating"])
def test_no_place_is_sent_that_both_ends_know(select):
    update, share = one_tensor(normal((8000,), 1)), one_tensor(torch.zeros(8000))
    size = len(wire("compact", {"keep": 0.25, "select": select, "bits": 32}).encode(update, share, None, TRIP)[0])
    assert 0 < size - 4 * 2000 < 60
