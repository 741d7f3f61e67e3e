"""Delta-SVD: what it makes of changes, and how large its bank grows; its general laws are in `test_laws`."""

import numpy as np
import pytest
import torch

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import dense_product, spectrum, truncate
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.shares import living_prefix
from tests.aggregators.cases import F1_WEIGHTS, client, distance, f1, f64, products
from tests.oracles.delta_svd import delta_svd as oracle

SIZES = (14, 11)


def ordered(rank: int, seed: int) -> LoraAdapter:
    """Build a global adapter with its slots by falling singular value."""
    pair = client({"m": rank}, seed, dtype=torch.float64, sizes=SIZES).pairs["m"]
    return LoraAdapter({"m": truncate(pair, rank)})


def trained(share: LoraAdapter, seed: int) -> LoraAdapter:
    step = client(share.ranks, seed, dtype=torch.float64, sizes=SIZES).pairs["m"]
    pair = share.pairs["m"]
    return LoraAdapter({"m": type(pair)(pair.a + 0.1 * step.a, pair.b + 0.1 * step.b, 1.0, pair.form)})


def as_client(adapter: LoraAdapter) -> tuple[list[list[float]], list[list[float]], float]:
    pair = adapter.pairs["m"]
    return pair.a.tolist(), pair.b.tolist(), pair.scaling


def test_delta_svd_without_history_gives_the_worked_target():
    pair = aggregate("delta_svd", f1(), F1_WEIGHTS).pairs["m"]
    torch.testing.assert_close(dense_product(pair), f64([[4.5, 6], [11.5, 14]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bank_factor", [1, 2, 3])
def test_result_is_the_global_product_plus_the_mean_change(bank_factor: int):
    held, weights = ordered(6, 1), [2.0, 1.0, 4.0]
    updates = [trained(living_prefix(held, {"m": rank}), 50 + rank) for rank in (1, 3, 2)]
    result = aggregate("delta_svd", updates, weights, previous=held, options={"bank_factor": bank_factor})
    rank = max(6, 3 * bank_factor)
    dense = dense_product(held.pairs["m"]).numpy()
    exact = oracle([as_client(u) for u in updates], weights, dense, rank)
    torch.testing.assert_close(dense_product(result.pairs["m"]), f64(exact), rtol=0, atol=1e-10)
    assert result.ranks == {"m": rank}


def test_clients_that_do_not_train_contribute_nothing():
    held, weights = ordered(4, 2), [1.0, 5.0]
    moved, idle = trained(living_prefix(held, {"m": 2}), 9), living_prefix(held, {"m": 3})
    result = aggregate("delta_svd", [moved, idle], weights, previous=held)
    change = dense_product(moved.pairs["m"]) - dense_product(living_prefix(held, {"m": 2}).pairs["m"])
    expected = dense_product(held.pairs["m"]) + change / 6
    torch.testing.assert_close(dense_product(result.pairs["m"]), expected, rtol=0, atol=1e-12)


def test_full_rank_clients_make_it_flexlora():
    held = ordered(3, 4)
    updates = [trained(living_prefix(held, {"m": 3}), seed) for seed in (5, 6)]
    result = aggregate("delta_svd", updates, [1.0, 2.0], previous=held, options={"bank_factor": 1})
    expected = aggregate("flexlora", updates, [1.0, 2.0], previous=held)
    assert distance(products(result), products(expected)) <= 1e-12


def test_bank_holds_more_directions_than_any_client_trains():
    held = ordered(2, 7)
    updates = [trained(living_prefix(held, {"m": 2}), seed) for seed in (8, 9, 10)]
    result = aggregate("delta_svd", updates, [1.0, 1.0, 1.0], previous=held)
    assert result.ranks == {"m": 4}
    assert bool((spectrum(result.pairs["m"]) > 1e-3).all())


def test_bank_is_no_larger_than_the_layer_and_never_shrinks():
    wide, held = {"bank_factor": 64}, ordered(8, 11)
    updates = [trained(living_prefix(held, {"m": 1}), 12)]
    assert aggregate("delta_svd", updates, [1.0], previous=held, options=wide).ranks == {"m": min(SIZES)}
    assert aggregate("delta_svd", updates, [1.0], previous=held).ranks == {"m": 8}


def test_ten_noop_rounds_leave_the_product_alone():
    held = now = ordered(9, 13)
    for _ in range(10):
        returned = [living_prefix(now, {"m": rank}) for rank in (2, 5, 9)]
        now = aggregate("delta_svd", returned, [0.2, 0.3, 0.5], previous=now)
    assert distance(products(now), products(held)) <= 1e-12


def test_oracle_without_history_is_the_mean_cut_to_the_largest_rank():
    clients = [as_client(u) for u in (ordered(2, 14), ordered(3, 15))]
    mean = sum(w * s * np.array(b) @ np.array(a) for (a, b, s), w in zip(clients, (0.25, 0.75), strict=True))
    assert np.linalg.matrix_rank(oracle(clients, [1.0, 3.0])) == 3
    torch.testing.assert_close(f64(oracle(clients, [1.0, 3.0], rank=5)), f64(mean))
