"""FLoRA stacking: exactness, what clients merge round by round, and two published bugs it must not have."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import adapter_norm, dense_product, truncate
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.shares import fresh_share
from tasks.aggregators.table import AGGREGATORS
from tests.aggregators.cases import (
    F1_A,
    F1_B,
    F1_WEIGHTS,
    by_oracle,
    client,
    distance,
    f1,
    f64,
    mixed_cohort,
    products,
)
from tests.oracles.flora_stack import flora_stack as oracle

ROW = AGGREGATORS["flora_stack"]


def merged(new: LoraAdapter, previous: LoraAdapter) -> LoraAdapter:
    assert ROW.merges is not None
    return ROW.merges(new, previous, {"m": 2})


@pytest.mark.parametrize(
    ("scales", "target"), [((1.0, 1.0), [[4.5, 6], [11.5, 14]]), ((2.0, 0.5), [[3.375, 5.25], [7.25, 10]])]
)
def test_stack_gives_the_worked_target(scales: tuple[float, float], target: list[list[float]]):
    pair = aggregate("flora_stack", f1(scales), F1_WEIGHTS).pairs["m"]
    assert pair.rank == 3
    torch.testing.assert_close(dense_product(pair), f64(target), rtol=0, atol=1e-12)


def test_stack_holds_the_clients_a_as_sent_and_the_weights_on_b():
    pair = aggregate("flora_stack", f1(), F1_WEIGHTS).pairs["m"]
    assert pair.a.tolist() == [[1, 2], [5, 6], [7, 8]]
    assert pair.b.tolist() == [[0.75, 0.75, 0], [1, 0, 1.5]]


def test_oracle_gives_the_worked_numbers():
    clients = [(a, b, 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    assert oracle(clients, F1_WEIGHTS) == [[4.5, 6.0], [11.5, 14.0]]


def test_rank_is_the_sum_of_all_ranks():
    updates, weights = mixed_cohort(1)
    assert aggregate("flora_stack", updates, weights).ranks == {"layers.0": 7, "layers.1": 7}


def test_ten_clients_give_a_mean_where_a_stack_without_weights_gives_ten_times_it():
    update = client({"m": 2}, 1)
    same = [update] * 10
    assert adapter_norm(aggregate("flora_stack", same, [3.0] * 10)) == pytest.approx(adapter_norm(update), rel=1e-5)
    pair = update.pairs["m"]
    raw = LoraAdapter({"m": type(pair)(torch.cat([pair.a] * 10), torch.cat([pair.b] * 10, dim=1))})
    assert adapter_norm(raw) == pytest.approx(10 * adapter_norm(update), rel=1e-5)


@settings(derandomize=True, max_examples=15)
@given(seed=st.integers(0, 2**20), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_stack_is_exact_to_float32(seed: int, ranks: list[int]):
    updates = [client({"m": rank}, seed + 10 * k, sizes=(30, 20)) for k, rank in enumerate(ranks)]
    weights = [1.0 + k for k in range(len(ranks))]
    result, exact = aggregate("flora_stack", updates, weights), by_oracle("flora_stack", updates, weights)
    assert distance(products(result), exact) <= 1e-6 * float(exact.dense["m.product"].abs().max() + 1)


def test_base_holds_the_global_adapter_after_any_number_of_rounds():
    """Clients add what each round appended; rounds soon outgrow the layer, and one trains a module alone."""
    sizes = (6, 5)
    now = client({"m": 2, "n": 1}, 0, dtype=torch.float64, sizes=sizes)
    now = fresh_share(now, now.ranks)
    base = {path: torch.zeros(5, 6, dtype=torch.float64) for path in now.pairs}
    for index in range(6):
        paths = ("m", "n") if index != 3 else ("m",)
        updates = [client(dict.fromkeys(paths, r), 100 * index + r, dtype=torch.float64, sizes=sizes) for r in (2, 3)]
        new = aggregate("flora_stack", updates, [1.0, 2.0], previous=now)
        step = merged(new, now)
        assert step.ranks == dict.fromkeys(paths, 5)
        for path, pair in step.pairs.items():
            base[path] += dense_product(pair)
        now = new
        for path, pair in now.pairs.items():
            assert pair.rank <= min(sizes) + 5
            torch.testing.assert_close(dense_product(pair), base[path])


def test_the_initial_adapter_leaves_no_history():
    """Its b is zero, so slots of it would be dead weight on every downlink."""
    updates, weights = mixed_cohort(4)
    pairs = {path: replace(pair, b=torch.zeros_like(pair.b)) for path, pair in updates[0].pairs.items()}
    initial = LoraAdapter(pairs, updates[0].dense)
    result = aggregate("flora_stack", updates, weights, previous=initial)
    assert result.ranks == {"layers.0": 7, "layers.1": 7}
    assert merged(result, initial).ranks == result.ranks
    assert aggregate("flora_stack", updates, weights, previous=updates[0]).ranks == {"layers.0": 11, "layers.1": 10}


def test_recompressed_stack_is_the_best_cut_of_the_round_alone():
    updates, weights = mixed_cohort(2)
    old = aggregate("flora_stack", updates[::-1], weights)
    exact = aggregate("flora_stack", updates, weights)
    cut = aggregate("flora_stack", updates, weights, previous=old, options={"recompress_rank": 2})
    for path, step in merged(cut, old).pairs.items():
        expected = dense_product(truncate(exact.pairs[path], 2))
        assert step.rank == 2
        torch.testing.assert_close(dense_product(step), expected)
        torch.testing.assert_close(dense_product(cut.pairs[path]), dense_product(old.pairs[path]) + expected)


def test_recompression_never_pads():
    updates, weights = mixed_cohort(3)
    result = aggregate("flora_stack", updates, weights, options={"recompress_rank": 50})
    assert result.ranks == {"layers.0": 7, "layers.1": 7}
