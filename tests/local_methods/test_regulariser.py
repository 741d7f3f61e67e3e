"""The two penalties on slots, against loops over plain floats and the worked figures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.local_methods.pairs import ModelPair
from tasks.local_methods.regulariser import Regulariser, mean_cosine, orthogonality
from tests.strategies import normal

matrices = st.builds(
    lambda rows, columns, seed: normal((rows, columns), seed, dtype=torch.float64),
    st.integers(2, 5),
    st.integers(1, 6),
    st.integers(0, 2**20),
).filter(lambda slots: float(slots.norm(dim=1).min()) > 1e-2)  # shorter ones count as having no direction


def pair_of(a: torch.Tensor, b: torch.Tensor, scaling: float = 1.0) -> ModelPair:
    return ModelPair("m", nn.Parameter(a), nn.Parameter(b), scaling, nn.Module(), "weight")


def dot(left: list[float], right: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(left, right, strict=True))


def orthogonality_by_hand(rows: list[list[float]], norm: float) -> float:
    off = [dot(p, q) - (norm**2 if i == j else 0.0) for i, p in enumerate(rows) for j, q in enumerate(rows)]
    return math.sqrt(math.fsum(x * x for x in off))


def mean_cosine_by_hand(rows: list[list[float]]) -> float:
    lengths = [math.sqrt(dot(row, row)) for row in rows]
    between = [
        abs(dot(p, q)) / (lengths[i] * lengths[j]) for i, p in enumerate(rows) for j, q in enumerate(rows) if i != j
    ]
    return math.fsum(between) / len(between)


@given(matrices, st.sampled_from((0.5, 1.0, 2.0)))
def test_orthogonality_is_the_unsquared_distance_from_the_identity(slots, norm):
    assert orthogonality(slots, norm).item() == pytest.approx(orthogonality_by_hand(slots.tolist(), norm), abs=2e-6)


@given(matrices)
def test_the_mean_cosine_is_that_between_distinct_slots(slots):
    assert mean_cosine(slots).item() == pytest.approx(mean_cosine_by_hand(slots.tolist()), abs=1e-9)


@given(matrices, st.floats(0.1, 100))
def test_the_cosine_does_not_look_at_lengths(slots, factor):
    stretched = slots.clone()
    stretched[0] *= factor
    assert mean_cosine(stretched).item() == pytest.approx(mean_cosine(slots).item(), abs=1e-9)


@pytest.mark.parametrize("form", ["orthogonal", "cosine"])
def test_orthonormal_slots_cost_nothing(form):
    basis = torch.linalg.qr(normal((6, 3), 1))[0]
    penalty = Regulariser(0.1, form, 1.0).penalty([pair_of(basis.T.clone(), basis)])
    assert penalty is not None
    assert penalty.item() == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize(("length", "rank"), [(2.0, 3), (0.5, 4), (3.0, 1)])
def test_orthogonal_slots_of_another_length_cost_the_difference_of_squares(length, rank):
    slots = length * torch.eye(rank, 6)
    assert orthogonality(slots, 1.0).item() == pytest.approx(abs(length**2 - 1) * math.sqrt(rank), rel=1e-6)


def test_a_zero_factor_of_rank_8_costs_the_root_of_8_without_a_gradient():
    slots = torch.zeros(8, 5, requires_grad=True)
    value = orthogonality(slots, 1.0)
    value.backward()
    assert value.item() == pytest.approx(2.828, abs=5e-4)
    assert not slots.grad.any()


def test_the_penalty_is_the_mean_over_matrices_times_its_strength():
    pairs = [pair_of(normal((2, 5), 1), normal((4, 2), 2)), pair_of(normal((3, 5), 3), normal((4, 3), 4))]
    by_hand = [orthogonality_by_hand(slots.tolist(), 1.0) for pair in pairs for slots in (pair.a_slots, pair.b_slots)]
    penalty = Regulariser(0.3, "orthogonal", 0.0).penalty(pairs)
    assert penalty.item() == pytest.approx(0.3 * math.fsum(by_hand) / 4, rel=1e-5)


def test_the_default_length_makes_an_update_of_spectral_norm_1():
    scaling = 4.0
    slots = scaling**-0.5 * torch.eye(3, 6)
    regulariser = Regulariser(1.0, "orthogonal", 0.0)
    assert regulariser.penalty([pair_of(slots, slots.T.clone(), scaling)]).item() == pytest.approx(0, abs=2e-6)
    assert torch.linalg.matrix_norm(scaling * slots.T @ slots, 2).item() == pytest.approx(1)


def test_one_slot_has_no_angle():
    lone, three = pair_of(normal((1, 5), 1), normal((4, 1), 2)), pair_of(normal((3, 5), 3), normal((4, 3), 4))
    cosine = Regulariser(1.0, "cosine", 0.0)
    assert cosine.penalty([lone]) is None
    assert cosine.penalty([lone, three]) == cosine.penalty([three])


def test_a_slot_without_a_direction_is_orthogonal_to_all_and_has_no_gradient():
    slots = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    value = mean_cosine(slots)
    value.backward()
    assert value.item() == pytest.approx(2 * math.sqrt(0.5) / 6)
    assert slots.grad.isfinite().all()
    assert not slots.grad[2].any()


def test_no_strength_is_no_penalty():
    assert Regulariser(0.0, "orthogonal", 0.0).penalty([pair_of(normal((2, 5), 1), normal((4, 2), 2))]) is None
