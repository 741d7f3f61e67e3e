"""FedEx: the residual and who may use it; its general laws are in `test_laws`."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.adapters.products import dense_product
from tasks.adapters.resize import resize
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import MixedRanksError
from tests.aggregators.cases import F1_A, F1_B, F1_WEIGHTS, client, f1, f64
from tests.oracles.fedex import residual as oracle

ROW = AGGREGATORS["fedex"]


def slots(pair: LoraPair, start: int, stop: int | None = None) -> torch.Tensor:
    return pair.b[:, start:stop] @ pair.a[start:stop]


def test_residual_on_padded_factors_gives_the_worked_numbers():
    padded = [resize(update, 2) for update in f1()]
    pair = aggregate("fedex", padded, F1_WEIGHTS).pairs["m"]
    torch.testing.assert_close(slots(pair, 0, 2), f64([[6, 7.5], [11.875, 14]]))
    torch.testing.assert_close(slots(pair, 2), f64([[-1.5, -1.5], [-0.375, 0]]), rtol=0, atol=1e-12)
    torch.testing.assert_close(dense_product(pair), f64([[4.5, 6], [11.5, 14]]))


def test_oracle_gives_the_worked_numbers():
    padded = [([[1.0, 2.0], [0.0, 0.0]], [[3.0, 0.0], [4.0, 0.0]], 1.0), (F1_A[1], F1_B[1], 1.0)]
    torch.testing.assert_close(f64(oracle(padded, F1_WEIGHTS)), f64([[-1.5, -1.5], [-0.375, 0]]))


def test_trained_slots_are_the_means_of_the_factors():
    updates = [client({"m": 3}, seed) for seed in (1, 2, 3)]
    weights = [2.0, 1.0, 1.0]
    pair, mean = (aggregate(name, updates, weights).pairs["m"] for name in ("fedex", "fedavg"))
    torch.testing.assert_close(pair.a[:3], mean.a)
    torch.testing.assert_close(pair.b[:, :3], mean.b)


@settings(derandomize=True, max_examples=15)
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(1, 5),
    rank=st.integers(1, 3),
    sizes=st.sampled_from([(9, 4), (4, 9), (20, 30)]),
)
def test_residual_has_the_rank_of_the_deviations(seed: int, count: int, rank: int, sizes: tuple[int, int]):
    updates = [client({"m": rank}, seed + 10 * k, dtype=torch.float64, sizes=sizes) for k in range(count)]
    weights = [1.0 + k for k in range(count)]
    pair = aggregate("fedex", updates, weights).pairs["m"]
    assert pair.rank == rank + min((count - 1) * rank, *sizes)
    clients = [(u.pairs["m"].a.tolist(), u.pairs["m"].b.tolist(), 1.0) for u in updates]
    torch.testing.assert_close(slots(pair, rank), f64(oracle(clients, weights)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 5, 40])
def test_clients_that_agree_leave_no_slots_of_rounding(count: int, dtype: torch.dtype):
    update = client({"m": 2}, 1, dtype=dtype, sizes=(200, 150))
    weights = [1.0 + 0.37 * k for k in range(count)]
    assert aggregate("fedex", [update] * count, weights).ranks == {"m": 2}


@pytest.mark.parametrize("shared", ["a", "b"])
def test_equal_factors_on_one_side_leave_nothing_to_correct(shared: str):
    first, *others = (client({"m": 2}, seed, dtype=torch.float64).pairs["m"] for seed in (1, 2, 3))
    same = [replace(pair, **{shared: getattr(first, shared)}) for pair in (first, *others)]
    result = aggregate("fedex", [LoraAdapter({"m": pair}) for pair in same], [1.0, 2.0, 4.0])
    assert result.ranks == {"m": 2}


def test_a_small_disagreement_is_still_corrected():
    update = client({"m": 1}, 1, dtype=torch.float64)
    pair = update.pairs["m"]
    moved = LoraAdapter({"m": replace(pair, a=pair.a * (1 + 1e-6), b=pair.b * (1 + 1e-6))})
    result = aggregate("fedex", [update, moved], [1.0, 1.0]).pairs["m"]
    assert result.rank == 2
    torch.testing.assert_close(slots(result, 1), 2.5e-13 * dense_product(pair), rtol=1e-3, atol=0)


def test_base_and_trained_slots_hold_the_global_adapter_after_any_number_of_rounds():
    """Clients start from the means on a base that has every residual; one module rests for a round."""
    sizes, ranks = (6, 5), {"m": 2, "n": 1}
    now = client(ranks, 0, dtype=torch.float64, sizes=sizes)
    base = {path: torch.zeros(5, 6, dtype=torch.float64) for path in now.pairs}
    assert ROW.merges is not None
    for index in range(6):
        paths = ranks if index != 3 else {"m": 2}
        share = ROW.share(now, paths)
        moves = [client(paths, 100 * index + k, dtype=torch.float64, sizes=sizes) for k in range(3)]
        updates = [aggregate("fedavg", [share, move], [1.0, 1.0]) for move in moves]
        new = aggregate("fedex", updates, [1.0, 2.0, 3.0], previous=now)
        targets = {
            p: sum((w * dense_product(u.pairs[p]) for u, w in zip(updates, (1, 2, 3), strict=True))) for p in paths
        }
        for path, target in targets.items():
            # What a client would have reached had it averaged products: its base and the mean of products.
            torch.testing.assert_close(dense_product(new.pairs[path]), base[path] + target / 6)
        for path, pair in ROW.merges(new, now, ranks).pairs.items():
            base[path] += dense_product(pair)
        now = new
        for path, pair in now.pairs.items():
            trained = dense_product(prefix(now, ranks).pairs[path])
            torch.testing.assert_close(dense_product(pair), base[path] + trained)


def test_one_client_leaves_no_residual():
    update = client({"m": 2}, 4)
    pair = aggregate("fedex", [update], [3.0]).pairs["m"]
    assert torch.equal(pair.a, update.pairs["m"].a)
    assert torch.equal(pair.b, update.pairs["m"].b)


def test_mixed_ranks_are_refused_with_the_reason():
    updates = [client({"m": 2, "n": rank}, rank) for rank in (4, 1)]
    with pytest.raises(MixedRanksError, match=r"module n: .*without the product.*ranks 1, 4.*raflora"):
        aggregate("fedex", updates, [1.0, 1.0])
