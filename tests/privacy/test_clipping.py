"""Changes and their norm: the whole client under one bound, whatever its ranks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.errors import AdapterShapeError, NonFiniteUpdateError
from tasks.privacy.clipping import clip_factor, differences, joint_norm
from tests.strategies import adapters, normal


def pair(rank: int, seed: int, *, scaling: float = 1.0) -> LoraPair:
    return LoraPair(normal((rank, 5), seed), normal((4, rank), seed + 1), scaling)


@settings(derandomize=True, max_examples=50)
@given(update=adapters(), seed=st.integers(0, 99), clip_norm=st.floats(1e-3, 100))
def test_clipped_norm_stays_within_bounds_and_short_changes_stay_whole(
    update: LoraAdapter, seed: int, clip_norm: float
):
    zero = LoraAdapter(
        {p: LoraPair(x.a * 0, x.b * 0, x.scaling, x.form) for p, x in update.pairs.items()},
        {name: tensor * 0 for name, tensor in update.dense.items()},
    )
    moved = differences(update, zero, "both", subject="update 0")
    norm = joint_norm(moved.values())
    by_numpy = math.sqrt(sum(float((t.numpy() ** 2).sum()) for t in moved.values()))
    assert norm == pytest.approx(by_numpy)
    factor = clip_factor(norm, clip_norm)
    assert joint_norm(t * factor for t in moved.values()) <= clip_norm * (1 + 1e-6)
    assert (factor == 1.0) == (norm <= clip_norm)


def test_norm_spans_factors_modules_and_dense_tensors():
    def whole(value: float) -> LoraAdapter:
        pairs = {"m": LoraPair(torch.full((1, 2), value), torch.full((2, 1), value / 2), scaling=2.0)}
        return LoraAdapter(pairs, {"head": torch.full((5,), value)})

    # 2 of a, 2 of b with its scale of 2 folded in, 5 of the head: nine numbers of 1.
    moved = differences(whole(1.0), whole(0.0), "both", subject="update 0")
    assert joint_norm(moved.values()) == 3.0
    assert joint_norm(differences(whole(1.0), whole(0.0), "b", subject="update 0").values()) == math.sqrt(7)


def test_change_is_taken_against_the_clients_own_slots():
    old, new = LoraAdapter({"m": pair(3, 1, scaling=0.5)}), LoraAdapter({"m": pair(2, 9)})
    moved = differences(new, old, "both", subject="update 0")
    before = old.pairs["m"]
    np.testing.assert_allclose(moved["m", "a"], new.pairs["m"].a.double() - before.a.double()[:2])
    np.testing.assert_allclose(moved["m", "b"], new.pairs["m"].b.double() - 0.5 * before.b.double()[:, :2])


def test_a_share_sent_back_has_moved_nowhere():
    old = LoraAdapter({"m": pair(3, 1, scaling=0.5)}, {"head": normal((4,), 3)})
    moved = differences(prefix(old, {"m": 2}), old, "both", subject="update 0")
    assert joint_norm(moved.values()) == 0.0
    assert clip_factor(0.0, 1.0) == 1.0


def test_counters_are_left_out():
    one, two = (LoraAdapter({"m": pair(1, 1)}, {"seen": torch.tensor(count)}) for count in (3, 90))
    assert ("seen", "dense") not in differences(two, one, "both", subject="update 0")


def test_infinite_norms_clip_to_nothing_and_infinite_bounds_clip_nothing():
    assert joint_norm([torch.full((2,), 1e200, dtype=torch.float64)]) == math.inf
    assert clip_factor(math.inf, 1.0) == 0.0
    assert clip_factor(1e9, math.inf) == clip_factor(math.inf, math.inf) == 1.0


MISFITS = {
    "a larger rank": LoraAdapter({"m": pair(4, 1)}),
    "another width": LoraAdapter({"m": LoraPair(torch.ones(2, 6), torch.ones(4, 2))}),
    "another height": LoraAdapter({"m": LoraPair(torch.ones(2, 5), torch.ones(3, 2))}),
    "an unknown module": LoraAdapter({"n": pair(2, 1)}),
    "an unknown tensor": LoraAdapter({}, {"tail": torch.ones(4)}),
    "another shape": LoraAdapter({}, {"head": torch.ones(5)}),
    "a counter": LoraAdapter({}, {"head": torch.ones(4, dtype=torch.int64)}),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_is_not_a_part_of_the_previous_adapter_is_refused(name: str):
    old = LoraAdapter({"m": pair(3, 1)}, {"head": torch.ones(4)})
    with pytest.raises(AdapterShapeError, match="update 7"):
        differences(MISFITS[name], old, "both", subject="update 7")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float):
    old, new = LoraAdapter({"m": pair(2, 1)}), LoraAdapter({"m": pair(2, 5)})
    new.pairs["m"].b[1, 1] = value
    with pytest.raises(NonFiniteUpdateError, match="update 7, tensor m factor b"):
        differences(new, old, "both", subject="update 7")
