import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, fold_scaling, prefix, unfold_scaling
from tasks.adapters.products import dense_product
from tasks.errors import AdapterShapeError, NonFiniteUpdateError
from tests.strategies import adapters

laws = settings(max_examples=30, derandomize=True)
PAIR = LoraPair(torch.ones(2, 3), torch.ones(4, 2))


@laws
@given(adapters())
def test_folding_keeps_the_product_and_the_input(adapter):
    before = {path: pair.b.clone() for path, pair in adapter.pairs.items()}
    for path, pair in fold_scaling(adapter).pairs.items():
        assert pair.scaling == 1.0
        torch.testing.assert_close(dense_product(pair), dense_product(adapter.pairs[path]))
        assert torch.equal(adapter.pairs[path].b, before[path])


@laws
@given(adapters(), st.sampled_from((0.25, 2.0, 8.0)))
def test_unfolding_keeps_the_product_under_the_receiver_s_scale(adapter, scaling: float):
    for path, pair in unfold_scaling(adapter, dict.fromkeys(adapter.pairs, scaling)).pairs.items():
        assert pair.scaling == scaling
        torch.testing.assert_close(dense_product(pair), dense_product(adapter.pairs[path]))


def test_prefix_keeps_the_first_slots_and_the_asked_modules():
    a, b = torch.arange(6.0).reshape(2, 3), torch.arange(8.0).reshape(4, 2)
    share = prefix(LoraAdapter({"m": LoraPair(a, b), "n": PAIR}, {"bias": torch.ones(1)}), {"m": 1})
    assert share.ranks == {"m": 1}
    assert torch.equal(share.pairs["m"].a, a[:1])
    assert torch.equal(share.pairs["m"].b, b[:, :1])
    assert set(share.dense) == {"bias"}


@pytest.mark.parametrize("ranks", [{"m": 0}, {"m": 3}, {"typo": 1}])
def test_prefix_refuses_ranks_that_are_not_there(ranks):
    with pytest.raises(AdapterShapeError, match="rank prefix"):
        prefix(LoraAdapter({"m": PAIR}), ranks)


def test_factors_of_different_ranks_make_no_pair():
    with pytest.raises(AdapterShapeError, match="share one rank"):
        LoraPair(torch.ones(2, 3), torch.ones(4, 3))


def test_modules_come_in_sorted_order_whoever_built_the_adapter():
    assert list(LoraAdapter({"n": PAIR, "m": PAIR}, {"z": torch.ones(1), "y": torch.ones(1)}).pairs) == ["m", "n"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_check_finite_names_the_tensor(value):
    bad = LoraPair(torch.full((2, 3), value), torch.ones(4, 2))
    with pytest.raises(NonFiniteUpdateError, match="client c07, tensor m factor a"):
        check_finite(LoraAdapter({"m": bad}), "client c07")
    with pytest.raises(NonFiniteUpdateError, match="tensor head"):
        check_finite(LoraAdapter({"m": PAIR}, {"head": torch.tensor([value])}), "client c07")
    check_finite(LoraAdapter({"m": PAIR}, {"counter": torch.tensor(3)}), "client c07")
