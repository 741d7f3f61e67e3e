"""Cores: what is frozen can be drawn again by whoever holds `a`, and everything else is the core."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.core import core_of, core_start, frozen_b, leading_cores, stray_share, with_core
from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair
from tasks.errors import AdapterShapeError, ModelError
from tests.oracles import fed_sb
from tests.strategies import adapters, normal, pair_of

laws = settings(max_examples=40, derandomize=True)
SIZES = st.integers(1, 12)


def cored(rank: int, outputs: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[LoraPair, torch.Tensor]:
    """A pair, and the core that it was made of."""
    bare = pair_of(LayerForm("linear", (10,)), outputs, rank, seed=seed, dtype=dtype)
    core = normal((rank, rank), seed + 7, dtype=dtype)
    return with_core(bare, core), core


@laws
@given(rank=SIZES, outputs=SIZES, seed=st.integers(0, 2**20))
def test_frozen_columns_are_orthonormal_as_far_as_there_is_room(rank, outputs, seed):
    basis = frozen_b(normal((rank, 10), seed), outputs)
    room = min(rank, outputs)
    assert basis.shape == (outputs, rank)
    torch.testing.assert_close(basis[:, :room].T @ basis[:, :room], torch.eye(room).double(), rtol=0, atol=1e-14)
    assert not basis[:, room:].any()


@laws
@given(rank=SIZES, outputs=SIZES, seed=st.integers(0, 2**20), cut=SIZES)
def test_a_lower_rank_has_the_first_columns_bit_for_bit(rank, outputs, seed, cut):
    a = normal((rank, 10), seed)
    assert torch.equal(frozen_b(a[:cut], outputs), frozen_b(a, outputs)[:, :cut])


@laws
@given(rank=SIZES, outputs=SIZES, seed=st.integers(0, 2**20))
def test_the_oracle_draws_the_same_columns(rank, outputs, seed):
    a = normal((rank, 10), seed)
    expected = torch.from_numpy(fed_sb.frozen(a.tolist(), outputs))
    torch.testing.assert_close(frozen_b(a, outputs), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_and_later_rows_do_not_matter_and_another_first_row_does(dtype):
    a = normal((3, 40), 1)
    assert torch.equal(frozen_b(a.to(dtype), 6), frozen_b(a, 6))
    assert torch.equal(frozen_b(torch.cat([a[:1], 2 - a[1:]]), 6), frozen_b(a, 6))
    assert not torch.equal(frozen_b(-a, 6), frozen_b(a, 6))


def test_the_frozen_columns_are_these_on_every_machine():
    digest = hashlib.sha256(frozen_b(normal((8, 40), 1), 33).contiguous().numpy().tobytes()).hexdigest()
    assert digest == "930888f64bb9c56883e8758c43fd6e35ff2dbddfa087bbf3cff46fad25751052"


@laws
@given(rank=st.integers(1, 6), outputs=st.integers(6, 12), seed=st.integers(0, 2**20))
def test_a_core_comes_back_from_the_pair_it_was_put_in(rank, outputs, seed):
    pair, core = cored(rank, outputs, seed)
    torch.testing.assert_close(core_of(pair), core, rtol=0, atol=1e-13)
    assert stray_share(pair) < 1e-14


def test_the_scaling_is_part_of_the_core():
    pair, core = cored(3, 8, 1)
    scaled = LoraPair(pair.a, pair.b, 4.0, pair.form)
    torch.testing.assert_close(core_of(scaled), 4 * core, rtol=0, atol=1e-13)


def test_a_core_rounds_a_float32_b_once():
    pair, core = cored(4, 40, 1, torch.float32)
    assert core_of(pair).dtype == torch.float32
    torch.testing.assert_close(core_of(pair), core, rtol=0, atol=2**-22)


def test_what_no_core_can_express_is_told():
    pair, _ = cored(1, 12, 1)
    basis = frozen_b(normal((2, 10), 1), 12)
    across = LoraPair(pair.a, 3 * frozen_b(pair.a, 12) + 4 * _normal_to(frozen_b(pair.a, 12), basis))
    assert stray_share(across) == pytest.approx(0.8, abs=1e-12)
    assert stray_share(LoraPair(pair.a, torch.zeros(12, 1))) == 0.0


def _normal_to(column: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    rest = others[:, :1] - column * (column.T @ others[:, :1])
    return rest / rest.norm()


# --- shares and starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_share_holds_the_leading_block(rank):
    pair, core = cored(5, 9, 3)
    head = {"head": normal((2,), 1)}
    share = leading_cores(LoraAdapter({"m": pair}, head), {"m": rank})
    torch.testing.assert_close(core_of(share.pairs["m"]), core[:rank, :rank], rtol=0, atol=1e-13)
    assert torch.equal(share.pairs["m"].a, pair.a[:rank])
    assert share.dense["head"] is head["head"]


def test_a_share_of_the_whole_rank_keeps_every_bit():
    pair, _ = cored(5, 9, 3, torch.float32)
    assert torch.equal(leading_cores(LoraAdapter({"m": pair}), {"m": 5}).pairs["m"].b, pair.b)


@pytest.mark.parametrize("ranks", [{"m": 0}, {"m": 6}, {"n": 1}])
def test_a_share_that_is_not_there_is_refused(ranks):
    with pytest.raises(AdapterShapeError):
        leading_cores(LoraAdapter({"m": cored(5, 9, 3)[0]}), ranks)


@laws
@given(adapter=adapters(kinds=("linear", "conv")), seed=st.integers(0, 2**63))
def test_a_run_starts_from_orthonormal_rows_and_a_product_of_zero(adapter, seed):
    start = core_start(adapter, seed=seed)
    assert start.ranks == adapter.ranks
    assert all(start.dense[name] is tensor for name, tensor in adapter.dense.items())
    for path, pair in start.pairs.items():
        like, room = adapter.pairs[path], min(pair.a.shape)
        assert (pair.form, pair.a.dtype, pair.b.shape, pair.scaling) == (like.form, like.a.dtype, like.b.shape, 1.0)
        gram = pair.a[:room].double() @ pair.a[:room].double().T
        torch.testing.assert_close(gram, torch.eye(room).double(), rtol=0, atol=1e-6)
        assert not pair.b.any()


def test_every_module_and_seed_starts_from_rows_of_its_own():
    like = pair_of(LayerForm("linear", (6,)), 4, 3, seed=1)
    both = LoraAdapter({"m": like, "n": like})
    first, again, other = (core_start(both, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.pairs["m"].a, again.pairs["m"].a)
    assert not torch.equal(first.pairs["m"].a, first.pairs["n"].a)
    assert not torch.equal(first.pairs["m"].a, other.pairs["m"].a)


def test_a_lower_rank_starts_from_the_first_rows():
    form = LayerForm("linear", (6,))
    low, high = (LoraAdapter({"m": pair_of(form, 4, rank, seed=1)}) for rank in (2, 4))
    assert torch.equal(core_start(low, seed=3).pairs["m"].a, core_start(high, seed=3).pairs["m"].a[:2])


def test_embeddings_are_refused():
    with pytest.raises(ModelError, match="module tokens: is an embedding"):
        core_start(LoraAdapter({"tokens": pair_of(LayerForm("embedding", (6,)), 4, 2, seed=1)}), seed=1)


def test_nothing_is_written_to():
    pair, _ = cored(4, 9, 1)
    before = pair.a.clone(), pair.b.clone()
    whole = LoraAdapter({"m": pair})
    core_of(pair)
    with_core(pair, torch.ones(4, 4))
    leading_cores(whole, {"m": 2}).pairs["m"].b.zero_()
    core_start(whole, seed=1)
    assert torch.equal(pair.a, before[0])
    assert torch.equal(pair.b, before[1])
    assert np.isfinite(stray_share(pair))
