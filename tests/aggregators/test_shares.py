"""Shares of global adapters that leave no client a slot that cannot learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.adapters.products import adapter_distance, dense_product, truncate
from tasks.aggregators.shares import fresh_share, living_prefix, recut
from tasks.errors import AdapterShapeError
from tests.aggregators.cases import client, same_bits
from tests.strategies import normal


def global_adapter(rank: int, alive: int, sizes: tuple[int, int] = (9, 7)) -> LoraAdapter:
    pair = LoraPair(normal((alive, sizes[0]), 1), normal((sizes[1], alive), 2), 2.0)
    return LoraAdapter({"m": truncate(pair, rank)}, {"head": normal((3,), 4)})


def test_share_of_living_slots_is_their_prefix():
    whole = global_adapter(4, 4)
    assert same_bits(living_prefix(whole, {"m": 2}), prefix(whole, {"m": 2}))
    assert same_bits(living_prefix(whole, {"m": 4}), whole)


@settings(derandomize=True, max_examples=40)
@given(alive=st.integers(1, 4), dead=st.integers(0, 4), wanted=st.integers(1, 12), inputs=st.sampled_from([1, 2, 5, 9]))
def test_share_has_the_rank_wanted_the_product_and_no_dead_slot(alive: int, dead: int, wanted: int, inputs: int):
    whole = global_adapter(alive + dead, alive, (inputs, 7))
    pair = living_prefix(whole, {"m": wanted}).pairs["m"]
    kept = LoraPair(whole.pairs["m"].a[:wanted], whole.pairs["m"].b[:, :wanted])
    assert pair.rank == wanted
    torch.testing.assert_close(dense_product(pair), dense_product(kept))
    lengths = pair.a.double().norm(dim=1)
    assert bool((lengths > 1e-3).all())
    assert bool(pair.a.isfinite().all())


def test_revived_rows_point_where_the_living_ones_do_not():
    pair = living_prefix(global_adapter(5, 2), {"m": 5}).pairs["m"]
    living, fresh = pair.a[:2], pair.a[2:]
    torch.testing.assert_close(fresh @ living.T, torch.zeros(3, 2), rtol=0, atol=1e-6)
    assert torch.linalg.matrix_rank(pair.a) == 5
    torch.testing.assert_close(fresh.norm(dim=1), torch.full((3,), 3.0**-0.5))


@pytest.mark.parametrize(("rank", "inputs"), [(1, 1), (3, 9), (9, 9), (20, 9)])
def test_fresh_share_has_no_product_and_no_dead_slot(rank: int, inputs: int):
    whole = client({"m": 2}, 1, sizes=(inputs, 7), dense={"head": torch.ones(3)})
    share = fresh_share(whole, {"m": rank})
    pair = share.pairs["m"]
    assert (pair.rank, pair.scaling, pair.a.dtype) == (rank, 1.0, torch.float32)
    assert not pair.b.any()
    torch.testing.assert_close(pair.a.norm(dim=1), torch.full((rank,), 3.0**-0.5))
    full = min(rank, inputs)
    torch.testing.assert_close(pair.a[:full] @ pair.a[:full].T, torch.eye(full) / 3)
    assert torch.equal(share.dense["head"], whole.dense["head"])


@pytest.mark.parametrize("share", [living_prefix, fresh_share])
def test_modules_without_a_rank_are_left_out(share):
    assert share(client({"m": 2, "n": 2}, 1), {"n": 1}).ranks == {"n": 1}


@pytest.mark.parametrize("share", [living_prefix, fresh_share])
@pytest.mark.parametrize(("ranks", "message"), [({"m": 0}, "rank of 1 or more"), ({"x": 1}, "a module of the adapter")])
def test_impossible_shares_are_refused(share, ranks: dict[str, int], message: str):
    with pytest.raises(AdapterShapeError, match=message):
        share(client({"m": 2}, 1), ranks)


def test_inputs_are_untouched():
    whole = global_adapter(4, 2)
    a = whole.pairs["m"].a.clone()
    living_prefix(whole, {"m": 6})
    fresh_share(whole, {"m": 6})
    assert torch.equal(whole.pairs["m"].a, a)


@settings(derandomize=True, max_examples=40)
@given(rank=st.integers(1, 6), wanted=st.integers(1, 9), gauge=st.sampled_from([1.0, 100.0]))
def test_recut_is_the_best_cut_whatever_the_gauge_and_its_prefixes_are_as_well(rank: int, wanted: int, gauge: float):
    pair = LoraPair(normal((rank, 9), 1) * gauge, normal((7, rank), 2) / gauge, 2.0)
    cut = recut(LoraAdapter({"m": pair}, {"head": normal((3,), 4)}), {"m": wanted})
    best = torch.linalg.svd(dense_product(pair), full_matrices=False)
    for kept in range(1, wanted + 1):
        short = prefix(cut, {"m": kept}).pairs["m"]
        expected = (best.U[:, :kept] * best.S[:kept]) @ best.Vh[:kept]
        torch.testing.assert_close(dense_product(short), expected, rtol=1e-4, atol=1e-4)
    assert cut.ranks == {"m": wanted}
    assert torch.equal(cut.dense["head"], normal((3,), 4))
    living = cut.pairs["m"].a.ne(0).any(dim=1) | cut.pairs["m"].b.ne(0).any(dim=0)
    assert bool(living.all())


def test_recut_twice_is_recut_once():
    whole = LoraAdapter({"m": LoraPair(normal((8, 9), 1), normal((7, 8), 2), 0.5)})
    twice = recut(recut(whole, {"m": 4}), {"m": 2})
    assert adapter_distance(twice, recut(whole, {"m": 2})) < 1e-5


def test_recut_of_an_adapter_that_learnt_nothing_keeps_its_first_slots():
    start = LoraAdapter({"m": LoraPair(normal((4, 9), 1), torch.zeros(7, 4))})
    assert same_bits(recut(start, {"m": 2}), prefix(start, {"m": 2}))


def test_recut_refuses_what_the_adapter_does_not_have():
    with pytest.raises(AdapterShapeError, match="module other"):
        recut(LoraAdapter({"m": LoraPair(normal((4, 9), 1), torch.zeros(7, 4))}), {"other": 2})
