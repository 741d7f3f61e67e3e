"""What the means behind the slice methods do with dtypes, dense tensors, shapes and gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import AdapterShapeError
from tests.aggregators.cases import MISFITS, by_oracle, client, suited, tensors
from tests.strategies import normal


def dense(**named: torch.Tensor) -> LoraAdapter:
    return LoraAdapter({}, named)


@pytest.mark.parametrize("name", sorted(name for name, row in AGGREGATORS.items() if row.averages == "slots"))
@settings(derandomize=True, max_examples=15)
@given(
    seed=st.integers(0, 2**20),
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    scaling=st.sampled_from((1.0, 1 / 3)),
)
def test_bf16_result_is_within_one_unit_in_the_last_place(name: str, seed: int, ranks: list[int], scaling: float):
    updates = [
        client({"m": rank}, seed + 100 * k, dtype=torch.bfloat16, dense={"head": normal((3,), k, dtype=torch.bfloat16)})
        for k, rank in enumerate(ranks)
    ]
    updates = [LoraAdapter({"m": replace(u.pairs["m"], scaling=scaling)}, u.dense) for u in updates]
    updates = suited(AGGREGATORS[name], updates)
    weights = [1.0 + k for k in range(len(updates))]
    result, exact = aggregate(name, updates, weights), tensors(by_oracle(name, updates, weights))
    for key, tensor in tensors(result).items():
        assert tensor.dtype == torch.bfloat16
        magnitude = torch.maximum(exact[key].abs(), tensor.double().abs()).clamp(min=1e-30)
        unit = torch.exp2(torch.floor(torch.log2(magnitude)) - 7)
        # Where clients cancel, float32 rounding of the summands is all that can be asked for.
        assert bool(((tensor.double() - exact[key]).abs() <= unit + 1e-6).all()), key


def test_float64_is_not_rounded_to_float32():
    value = torch.tensor([1.0 + 2**-40], dtype=torch.float64)
    result = aggregate("rbla", [dense(x=value), dense(x=value)], [1.0, 2.0])
    assert torch.equal(result.dense["x"], value)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_mixed_dtypes_come_out_in_the_wider_one(order: tuple[int, int]):
    pair = [client({"m": 2}, 3, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    result = aggregate("rbla", [pair[k] for k in order], [1.0, 1.0])
    assert result.pairs["m"].a.dtype == torch.float64
    torch.testing.assert_close(result.pairs["m"].a, pair[1].pairs["m"].a, rtol=1e-6, atol=1e-6)


def test_counters_take_the_maximum_and_floats_the_mean():
    updates = [
        dense(mean=torch.tensor([1.0, 5.0]), seen=torch.tensor(7)),
        dense(mean=torch.tensor([3.0, 1.0]), seen=torch.tensor(9)),
        dense(mean=torch.tensor([3.0, 1.0]), seen=torch.tensor(8)),
    ]
    result = aggregate("rbla", updates, [2.0, 1.0, 1.0])
    assert result.dense["mean"].tolist() == [2.0, 3.0]
    assert torch.equal(result.dense["seen"], torch.tensor(9))


def test_dense_tensor_is_averaged_over_the_clients_that_sent_it():
    updates = [dense(x=torch.ones(2)), LoraAdapter({}), dense(x=torch.full((2,), 4.0))]
    assert aggregate("rbla", updates, [2.0, 50.0, 1.0]).dense["x"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, 1)),
        (torch.ones(2), torch.ones(2, dtype=torch.int64)),
    ],
)
def test_dense_tensors_that_do_not_fit_are_refused(first: torch.Tensor, second: torch.Tensor):
    with pytest.raises(AdapterShapeError, match=r"update 1, tensor x: .*same base model"):
        aggregate("rbla", [dense(x=first), dense(x=second)], [1.0, 1.0])
    with pytest.raises(AdapterShapeError, match="previous adapter, tensor x"):
        aggregate("rbla", [dense(x=first)], [1.0], previous=dense(x=second))


@pytest.mark.parametrize("other", MISFITS.values(), ids=MISFITS)
def test_modules_that_do_not_fit_are_refused(other: LoraPair):
    fits, misfit = client({"m": 2}, 1), LoraAdapter({"m": other})
    with pytest.raises(AdapterShapeError, match=r"update 1, module m"):
        aggregate("rbla", [fits, misfit], [1.0, 1.0])
    with pytest.raises(AdapterShapeError, match="previous adapter, module m"):
        aggregate("rbla", [fits], [1.0], previous=misfit)


def test_misfits_are_found_across_blocks_too():
    left, right = AGGREGATORS["rbla"].start(), AGGREGATORS["rbla"].start()
    left.add(0, client({"m": 2}, 1), 1.0)
    right.add(64, client({"m": 2}, 1, sizes=(6, 4)), 1.0)
    with pytest.raises(AdapterShapeError, match="module m"):
        left.merge(right)


def test_rank_zero_is_refused():
    empty = LoraAdapter({"m": LoraPair(torch.ones(0, 5), torch.ones(4, 0))})
    with pytest.raises(AdapterShapeError, match="rank 0"):
        aggregate("rbla", [empty], [1.0])


def test_ranks_may_rise_and_fall_module_by_module():
    ranks = [{"m": 1, "n": 4}, {"m": 3, "n": 2}, {"m": 2, "n": 1}, {"m": 5, "n": 4}]
    updates = [client(r, 10 * k, dtype=torch.float64) for k, r in enumerate(ranks)]
    weights = [1.0, 2.0, 3.0, 4.0]
    result, exact = aggregate("rbla", updates, weights), tensors(by_oracle("rbla", updates, weights))
    for key, tensor in tensors(result).items():
        torch.testing.assert_close(tensor, exact[key])


def test_trained_parameters_leave_no_gradient_behind():
    pair = LoraPair(torch.ones(2, 5, requires_grad=True), torch.ones(4, 2, requires_grad=True), 2.0)
    update = LoraAdapter({"m": pair}, {"head": torch.ones(3, requires_grad=True)})
    result = aggregate("rbla", [update, update], [1.0, 3.0], previous=update)
    assert not any(t.requires_grad for t in tensors(result).values())


def test_result_shares_no_memory_with_updates():
    update = client({"m": 2}, 1, dense={"head": torch.ones(3)})
    result = aggregate("rbla", [update], [1.0])
    ours, theirs = tensors(result), tensors(update)
    assert all(t.data_ptr() != theirs[n].data_ptr() for n, t in ours.items())
