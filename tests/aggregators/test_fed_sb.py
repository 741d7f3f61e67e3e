"""Fed-SB: the mean of cores, entry by entry over the clients that hold it, and nothing but cores."""

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.core import core_of, leading_cores, with_core
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import dense_product
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.fed_sb import fed_sb as start
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import AdapterShapeError, FrozenFactorError, NonFiniteUpdateError
from tests.aggregators.cases import client, distance, f64, plain, products, same_bits
from tests.oracles.fed_sb import fed_sb
from tests.strategies import normal

WORKED = ([[2.0]], [[1.0, 3.0], [5.0, 7.0]])
WORKED_MEAN = [[1.25, 3.0], [5.0, 7.0]]
WEIGHTS = [1.0, 3.0]
laws = settings(derandomize=True, max_examples=25)


def cored(cores: dict[int, torch.Tensor], sizes: tuple[int, int] = (9, 8)) -> list[LoraAdapter]:
    """Put cores on the first rows of one `a` and on the B0 that belongs to it."""
    a = normal((max(map(len, cores.values())), sizes[0]), 3, dtype=torch.float64)
    zeros = torch.zeros(sizes[1], len(a), dtype=torch.float64)
    return [
        LoraAdapter({"m": with_core(LoraPair(a[: len(c)].to(c.dtype), zeros[:, : len(c)]), c)}) for c in cores.values()
    ]


def full(ranks: list[int], seed: int = 0) -> list[LoraAdapter]:
    return cored({k: normal((r, r), seed + k, dtype=torch.float64) for k, r in enumerate(ranks)})


def test_fed_sb_gives_the_worked_numbers():
    updates = cored(dict(enumerate(map(f64, WORKED))))
    pair = aggregate("fed_sb", updates, WEIGHTS).pairs["m"]
    torch.testing.assert_close(core_of(pair), f64(WORKED_MEAN), rtol=0, atol=1e-14)
    assert torch.equal(pair.a, updates[1].pairs["m"].a)


def test_oracle_gives_the_worked_numbers():
    updates = cored(dict(enumerate(map(f64, WORKED))))
    expected = dense_product(with_core(updates[1].pairs["m"], f64(WORKED_MEAN)))
    torch.testing.assert_close(f64(fed_sb(plain("m", updates), WEIGHTS)), expected, rtol=0, atol=1e-13)


@laws
@given(ranks=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 2**20))
def test_full_cores_of_any_ranks_give_the_oracles_product(ranks: list[int], seed: int):
    updates, weights = full(ranks, seed), [1.0 + k for k in range(len(ranks))]
    result = dense_product(aggregate("fed_sb", updates, weights).pairs["m"])
    torch.testing.assert_close(result, f64(fed_sb(plain("m", updates), weights)), rtol=0, atol=1e-12)


@laws
@given(rank=st.integers(1, 6), count=st.integers(1, 5), seed=st.integers(0, 2**20))
def test_at_one_rank_the_product_is_the_mean_of_the_products(rank: int, count: int, seed: int):
    updates, weights = full([rank] * count, seed), [1.0 + k for k in range(count)]
    terms = [w / sum(weights) * dense_product(u.pairs["m"]) for u, w in zip(updates, weights, strict=True)]
    result = dense_product(aggregate("fed_sb", updates, weights).pairs["m"])
    torch.testing.assert_close(result, torch.stack(terms).sum(0), rtol=0, atol=1e-12)


def test_unequal_ranks_are_not_the_mean_of_the_products():
    updates = full([2, 4])
    mean = torch.stack([dense_product(u.pairs["m"]) for u in updates]).mean(0)
    result = dense_product(aggregate("fed_sb", updates, [1.0, 1.0]).pairs["m"])
    assert float((result - mean).abs().max()) > 0.1


def test_a_low_rank_moves_no_entry_beyond_its_block():
    updates = full([2, 4])
    both, alone = (core_of(aggregate("fed_sb", u, [1.0] * len(u)).pairs["m"]) for u in (updates, updates[1:]))
    apart = (both - alone).abs() > 1e-12
    assert bool(apart[:2, :2].all())
    assert not bool(apart[2:].any())
    assert not bool(apart[:, 2:].any())


def test_entries_nobody_holds_keep_the_previous_value():
    (old,) = full([4], seed=9)
    low = full([2, 4])[:1]
    core, before = (core_of(x.pairs["m"]) for x in (aggregate("fed_sb", low, [1.0], previous=old), old))
    torch.testing.assert_close(core[:2, :2], core_of(low[0].pairs["m"]), rtol=0, atol=1e-13)
    torch.testing.assert_close(core[2:], before[2:], rtol=0, atol=1e-13)
    torch.testing.assert_close(core[:, 2:], before[:, 2:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_share_is_the_leading_block_and_not_the_first_slots(rank: int):
    (whole,) = full([4])
    share = AGGREGATORS["fed_sb"].share(whole, {"m": rank}).pairs["m"]
    torch.testing.assert_close(core_of(share), core_of(whole.pairs["m"])[:rank, :rank], rtol=0, atol=1e-14)
    assert torch.equal(share.b, whole.pairs["m"].b[:, :rank]) == (rank == 4)


def test_rounds_in_which_nobody_learns_change_nothing():
    (old,) = full([4])
    returned = [leading_cores(old, {"m": rank}) for rank in (1, 2, 4)]
    new = aggregate("fed_sb", returned, [2.0, 3.0, 5.0], previous=old)
    assert distance(products(new), products(old)) < 1e-13


# --- what is refused ------------------------------------------------------------------------------------------


def test_a_b_that_no_core_makes_is_refused():
    good = full([3])[0].pairs["m"]
    moved = replace(good, b=good.b + 0.1 * normal(good.b.shape, 5, dtype=torch.float64))
    with pytest.raises(FrozenFactorError, match=r"update 1, module m: its factor b .* lies outside"):
        aggregate("fed_sb", [LoraAdapter({"m": good}), LoraAdapter({"m": moved})], [1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_half_precision_is_no_reason_to_refuse(dtype: torch.dtype):
    pairs = [u.pairs["m"] for u in full([3, 5])]
    short = [LoraAdapter({"m": replace(p, a=p.a.to(dtype), b=p.b.to(dtype))}) for p in pairs]
    assert aggregate("fed_sb", short, [1.0, 1.0]).pairs["m"].b.dtype == dtype


def test_clients_with_an_a_of_their_own_are_refused():
    good = full([3])[0].pairs["m"]
    other = with_core(replace(good, a=good.a * 1.5), core_of(good))
    with pytest.raises(FrozenFactorError, match="update 1, module m: its factor a"):
        aggregate("fed_sb", [LoraAdapter({"m": good}), LoraAdapter({"m": other})], [1.0, 1.0])


@pytest.mark.parametrize("sizes", [(9, 7), (6, 8)])
def test_layers_that_do_not_fit_are_refused_with_their_own_sizes(sizes: tuple[int, int]):
    core = normal((2, 2), 1, dtype=torch.float64)
    updates = [*cored({0: core}), *cored({0: core}, sizes)]
    with pytest.raises(AdapterShapeError, match=rf"update 1, module m: .*b \[{sizes[1]}, R.*b \[8, R"):
        aggregate("fed_sb", updates, [1.0, 1.0])
    with pytest.raises(AdapterShapeError, match=r"previous adapter, module m: "):
        aggregate("fed_sb", updates[:1], [1.0], previous=updates[1])


def test_a_refused_update_leaves_the_fold_as_it_was():
    updates, fold = full([2, 3]), start()
    fold.add(0, updates[0], 1.0)
    with pytest.raises(FrozenFactorError):
        fold.add(1, LoraAdapter({**updates[1].pairs, "n": client({"n": 2}, 1).pairs["n"]}), 1.0)
    fold.add(1, updates[1], 2.0)
    assert same_bits(fold.finish(None), aggregate("fed_sb", updates, [1.0, 2.0]))


def test_a_value_that_is_not_finite_is_named():
    updates = full([2, 3])
    updates[1].pairs["m"].b[0, 0] = float("nan")
    with pytest.raises(NonFiniteUpdateError, match="update 1, tensor m factor b"):
        aggregate("fed_sb", updates, [1.0, 1.0])


def test_result_does_not_depend_on_the_cut_and_folds_travel():
    updates = full([1 + k % 3 for k in range(70)])
    weights = [1.0 + k % 5 for k in range(70)]
    left, right = start(), start()
    for position, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        (left if position < 64 else right).add(position, update, weight)
    right = pickle.loads(pickle.dumps(right))  # noqa: S301 - our own bytes
    right.merge(left)
    assert same_bits(right.finish(None), aggregate("fed_sb", updates, weights))
