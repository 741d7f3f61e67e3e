import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import (
    adapter_distance,
    adapter_norm,
    dense_product,
    inner,
    pair_norm,
    spectrum,
    truncate,
)
from tasks.errors import AdapterShapeError
from tests.aggregators.cases import gauged
from tests.strategies import adapters, cohorts, lora_pairs, normal

DOUBLE = (torch.float64,)
laws = settings(max_examples=60, derandomize=True)


def pair_2x2(a: list[list[float]], b: list[list[float]], scaling: float = 1.0) -> LoraPair:
    return LoraPair(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), scaling)


# Fixture F1 of the method notes: two clients, weights 1/4 and 3/4.
CLIENT_1 = pair_2x2([[1, 2]], [[3], [4]])
CLIENT_2 = pair_2x2([[5, 6], [7, 8]], [[1, 0], [0, 2]])
MEAN = pair_2x2([[1, 2], [5, 6], [7, 8]], [[0.75, 0.75, 0], [1, 0, 1.5]])


def test_norms_match_the_worked_numbers():
    assert pair_norm(CLIENT_1) == pytest.approx(11.180340, abs=5e-7)
    assert pair_norm(CLIENT_2) == pytest.approx(22.649503, abs=5e-7)


def test_spectrum_matches_the_worked_numbers():
    torch.testing.assert_close(dense_product(MEAN), torch.tensor([[4.5, 6], [11.5, 14]], dtype=torch.float64))
    assert spectrum(MEAN).tolist() == pytest.approx([19.606283, 0.306024], abs=5e-7)


def test_truncate_matches_the_worked_numbers():
    cut = truncate(MEAN, 1)
    expected = [[4.719669, 5.821921], [11.409129, 14.073667]]
    assert dense_product(cut).tolist() == [pytest.approx(row, abs=5e-7) for row in expected]
    assert torch.linalg.matrix_norm(dense_product(MEAN) - dense_product(cut)).item() == pytest.approx(
        0.306024, abs=5e-7
    )


@laws
@given(lora_pairs(dtypes=DOUBLE, max_rank=9))
def test_spectrum_equals_the_dense_one(pair):
    dense = torch.linalg.svdvals(dense_product(pair))
    sigma = spectrum(pair)
    assert sigma.shape[0] == min(pair.rank, *dense_product(pair).shape)
    torch.testing.assert_close(sigma, dense[: sigma.shape[0]], rtol=0, atol=1e-10 * float(dense[0]))


@laws
@given(cohorts(dtypes=DOUBLE, min_clients=2, max_clients=2))
def test_inner_equals_the_dense_one(cohort):
    (x, y), _ = cohort
    for path, p in x.pairs.items():
        q = y.pairs[path]
        dense = float((dense_product(p) * dense_product(q)).sum())
        assert inner(p, q) == pytest.approx(dense, rel=1e-10, abs=1e-10 * pair_norm(p) * pair_norm(q))


@laws
@given(adapters(dtypes=DOUBLE))
def test_adapter_norm_is_the_norm_of_all_products(adapter):
    dense = math.sqrt(sum(float(dense_product(p).square().sum()) for p in adapter.pairs.values()))
    assert adapter_norm(adapter) == pytest.approx(dense, rel=1e-10)


@laws
@given(cohorts(dtypes=DOUBLE, min_clients=2, max_clients=2))
def test_adapter_distance_is_the_norm_of_the_dense_difference(cohort):
    (x, y), _ = cohort
    gaps = [dense_product(x.pairs[p]) - dense_product(y.pairs[p]) for p in x.pairs]
    dense = math.sqrt(sum(float(gap.square().sum()) for gap in gaps))
    assert adapter_distance(x, y) == pytest.approx(dense, rel=1e-9)


@laws
@given(cohorts(dtypes=DOUBLE, min_clients=2, max_clients=2), st.integers(0, 999))
def test_products_do_not_see_the_gauge(cohort, seed):
    (x, y), _ = cohort
    turned = gauged(x, seed)
    assert adapter_norm(turned) == pytest.approx(adapter_norm(x), rel=1e-9)
    assert adapter_distance(turned, y) == pytest.approx(adapter_distance(x, y), rel=1e-9)
    assert adapter_distance(turned, x) <= 1e-12 * adapter_norm(x)
    for path, pair in x.pairs.items():
        other = turned.pairs[path]
        tiny = 1e-11 * pair_norm(pair) * max(1.0, pair_norm(y.pairs[path]))
        assert inner(other, y.pairs[path]) == pytest.approx(inner(pair, y.pairs[path]), rel=1e-9, abs=tiny)
        torch.testing.assert_close(spectrum(other), spectrum(pair), rtol=0, atol=1e-10 * pair_norm(pair))


@laws
@given(adapters())
def test_distance_of_an_adapter_to_itself_is_rounding(adapter):
    assert adapter_distance(adapter, adapter) <= 1e-14 * adapter_norm(adapter)


def test_distance_counts_a_module_of_one_side_whole():
    both, one = LoraAdapter({"m": CLIENT_1, "n": CLIENT_2}), LoraAdapter({"m": CLIENT_1})
    assert adapter_distance(both, one) == pytest.approx(pair_norm(CLIENT_2))
    assert adapter_distance(one, both) == pytest.approx(pair_norm(CLIENT_2))


def test_norm_survives_slots_that_cancel():
    a = normal((1, 50), 1, dtype=torch.float64) * 1e6
    b = normal((40, 1), 2, dtype=torch.float64)
    rest = LoraPair(normal((1, 50), 3, dtype=torch.float64), normal((40, 1), 4, dtype=torch.float64))
    pair = LoraPair(torch.cat([a, a, rest.a]), torch.cat([b, -b, rest.b], dim=1))
    assert pair_norm(pair) == pytest.approx(pair_norm(rest), rel=1e-6)


def test_different_layers_are_refused():
    other = LoraPair(torch.ones(1, 3), torch.ones(2, 1))
    with pytest.raises(AdapterShapeError, match="outer sizes differ"):
        inner(CLIENT_1, other)
    with pytest.raises(AdapterShapeError, match="module m: outer sizes differ"):
        adapter_distance(LoraAdapter({"m": CLIENT_1}), LoraAdapter({"m": other}))


@laws
@given(lora_pairs(dtypes=DOUBLE, max_rank=9), st.integers(1, 9))
def test_truncate_error_is_the_tail_of_the_spectrum(pair, rank):
    gap = dense_product(pair) - dense_product(truncate(pair, rank))
    tail = float(spectrum(pair)[rank:].square().sum())
    assert float(gap.square().sum()) == pytest.approx(tail, rel=1e-9, abs=1e-20 * pair_norm(pair) ** 2 + 1e-26)


@laws
@given(lora_pairs(dtypes=DOUBLE), st.integers(1, 4), st.integers(0, 999))
def test_no_other_candidate_of_the_rank_is_closer(pair, rank, seed):
    whole = dense_product(pair)
    best = torch.linalg.matrix_norm(whole - dense_product(truncate(pair, rank)))
    prefix = pair.scaling * pair.b[:, :rank] @ pair.a[:rank]
    factor = normal((whole.shape[0], rank), seed, dtype=torch.float64)
    fitted = factor @ torch.linalg.lstsq(factor, whole, driver="gelsd").solution
    for candidate in (prefix, fitted):
        assert best <= torch.linalg.matrix_norm(whole - candidate) * (1 + 1e-9) + 1e-12 * pair_norm(pair)


@laws
@given(lora_pairs(dtypes=DOUBLE, max_rank=7), st.integers(1, 4), st.integers(0, 3))
def test_cutting_twice_is_cutting_once(pair, rank, extra):
    once, twice = truncate(pair, rank), truncate(truncate(pair, rank + extra), rank)
    scale = pair_norm(pair)
    torch.testing.assert_close(dense_product(twice), dense_product(once), rtol=0, atol=1e-7 * scale)
    torch.testing.assert_close(spectrum(twice), spectrum(once), rtol=0, atol=1e-10 * scale)


@laws
@given(lora_pairs(max_rank=7), st.integers(1, 9))
def test_cut_is_balanced_sorted_and_signed(pair, rank):
    cut = truncate(pair, rank)
    assert (cut.rank, cut.scaling, cut.form, cut.a.dtype, cut.b.dtype) == (
        rank,
        1.0,
        pair.form,
        pair.a.dtype,
        pair.b.dtype,
    )
    norms = cut.b.norm(dim=0)
    tolerance = 1e-5 * float(norms[0])
    torch.testing.assert_close(cut.a.norm(dim=1), norms, rtol=1e-5, atol=tolerance)
    assert bool((norms[:-1] >= norms[1:] - tolerance).all())
    largest = cut.b.gather(0, cut.b.abs().argmax(dim=0, keepdim=True))
    assert bool((largest >= 0).all())
    own = min(pair.rank, pair.b.shape[0], pair.a.shape[1])
    assert not cut.a[own:].any()
    assert not cut.b[:, own:].any()


@pytest.mark.parametrize(
    ("energy", "slots"), [(0.5, 1), (0.9, 1), (0.9 + 1e-9, 2), (0.99, 2), (0.99 + 1e-9, 3), (0.999999, 3)]
)
def test_energy_keeps_the_fewest_slots_that_hold_the_share(energy: float, slots: int):
    """Squares 90, 9 and 1: a share that is met exactly needs no further slot."""
    sigma = torch.tensor([90.0, 9.0, 1.0], dtype=torch.float64).sqrt()
    pair = LoraPair(torch.eye(3, 6, dtype=torch.float64), torch.eye(5, 3, dtype=torch.float64) * sigma)
    assert truncate(pair, 3, energy=energy).rank == slots
    assert truncate(pair, 2, energy=energy).rank == min(slots, 2)


def test_energy_of_nothing_keeps_one_slot():
    assert truncate(LoraPair(torch.zeros(3, 9), torch.zeros(8, 3)), 2, energy=0.5).rank == 1


def test_prefix_of_a_cut_is_the_smaller_cut():
    pair = LoraPair(normal((5, 30), 1), normal((20, 5), 2), 2.0)
    big, small = truncate(pair, 4), truncate(pair, 2)
    assert torch.equal(big.a[:2], small.a)
    assert torch.equal(big.b[:, :2], small.b)


def test_slots_without_content_come_out_as_zeros_not_noise():
    a, b = normal((2, 30), 1), normal((20, 2), 2)
    doubled = truncate(LoraPair(torch.cat([a, a]), torch.cat([b, b], dim=1)), 4)
    assert not doubled.a[2:].any()
    assert not doubled.b[:, 2:].any()
    assert not truncate(LoraPair(torch.zeros(3, 9), torch.zeros(8, 3)), 2).a.any()


def test_inputs_are_untouched():
    pair = LoraPair(normal((3, 6), 1), normal((5, 3), 2), 2.0)
    a, b = pair.a.clone(), pair.b.clone()
    for read in (spectrum, pair_norm, dense_product, lambda p: truncate(p, 2), lambda p: inner(p, p)):
        read(pair)
    assert torch.equal(pair.a, a)
    assert torch.equal(pair.b, b)


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one_is_refused(rank):
    with pytest.raises(AdapterShapeError, match="rank of 1 or more"):
        truncate(CLIENT_1, rank)
