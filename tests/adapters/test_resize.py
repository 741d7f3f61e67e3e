import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.products import adapter_distance, adapter_norm, dense_product, spectrum
from tasks.adapters.resize import resize
from tasks.errors import AdapterShapeError
from tests.strategies import adapters, lora_pairs

PAIR = LoraPair(torch.ones(2, 3), torch.ones(4, 2))
laws = settings(max_examples=40, derandomize=True)


@laws
@given(adapters(), st.integers(1, 8))
def test_resize_gives_every_module_the_rank_and_folds(adapter, rank):
    resized = resize(adapter, rank)
    assert set(resized.ranks.values()) == {rank}
    assert {pair.scaling for pair in resized.pairs.values()} == {1.0}
    for path, pair in resized.pairs.items():
        assert (pair.form, pair.a.dtype) == (adapter.pairs[path].form, adapter.pairs[path].a.dtype)
    assert resized.dense == adapter.dense


@laws
@given(adapters(dtypes=(torch.float64,)), st.integers(1, 4))
def test_smaller_is_the_best_cut_of_the_product(adapter, rank):
    tail = sum(float(spectrum(pair)[rank:].square().sum()) for pair in adapter.pairs.values())
    gap = adapter_distance(resize(adapter, rank), adapter)
    assert gap**2 == pytest.approx(tail, rel=1e-8, abs=1e-24 * adapter_norm(adapter) ** 2)


@laws
@given(adapters(), st.integers(0, 3))
def test_larger_or_equal_keeps_slots_and_adds_zeros(adapter, extra):
    folded = fold_scaling(adapter)
    grown = resize(adapter, {path: rank + extra for path, rank in adapter.ranks.items()})
    for path, pair in folded.pairs.items():
        assert torch.equal(grown.pairs[path].a[: pair.rank], pair.a)
        assert torch.equal(grown.pairs[path].b[:, : pair.rank], pair.b)
        assert not grown.pairs[path].a[pair.rank :].any()
        assert not grown.pairs[path].b[:, pair.rank :].any()


@laws
@given(lora_pairs(is_folded=True, dtypes=(torch.float64,)), st.integers(1, 3))
def test_there_and_back_keeps_the_product(pair, extra):
    adapter = LoraAdapter({"m": pair})
    back = resize(resize(adapter, pair.rank + extra), pair.rank)
    torch.testing.assert_close(
        dense_product(back.pairs["m"]), dense_product(pair), rtol=0, atol=1e-10 * float(spectrum(pair)[0])
    )


@laws
@given(adapters())
def test_modules_without_a_rank_are_left_out(adapter):
    first = next(iter(adapter.pairs))
    assert resize(adapter, {first: 2}).ranks == {first: 2}


@pytest.mark.parametrize("rank", [0, -3])
def test_rank_below_one_is_refused(rank):
    adapter = LoraAdapter({"m": PAIR})
    for asked in (rank, {"m": rank}):
        with pytest.raises(AdapterShapeError, match=r"module m.*rank of 1 or more"):
            resize(adapter, asked)


def test_unknown_module_is_refused():
    with pytest.raises(AdapterShapeError, match="module typo: is not in the adapter"):
        resize(LoraAdapter({"m": PAIR}), {"typo": 1})
