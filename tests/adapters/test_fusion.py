"""Fusing a personal with the shared adapter: worked numbers, exactness, and a search that keeps its word."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.fusion import fuse, search_fusion
from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.peft_files import to_state_dict
from tasks.adapters.products import adapter_distance, adapter_norm, dense_product, spectrum
from tasks.errors import (
    AdapterShapeError,
    ConfigError,
    InvalidWeightError,
    MixedRanksError,
    NonFiniteUpdateError,
    UnknownNameError,
)
from tests.aggregators.cases import cast
from tests.oracles.fusion import exact, lorahub, peft_linear
from tests.strategies import adapters, cohorts

Sides = tuple[LoraAdapter, LoraAdapter]
laws = settings(max_examples=40, derandomize=True)
weight = st.floats(-1.5, 1.5).map(lambda w: round(w, 6))
two_weights = st.tuples(weight, weight)
two_sides = cohorts(min_clients=2, max_clients=2).map(lambda drawn: (drawn[0][0], drawn[0][1]))
two_equal_sides = cohorts(min_clients=2, max_clients=2, has_equal_ranks=True).map(lambda d: (d[0][0], d[0][1]))
two_doubles = cohorts(min_clients=2, max_clients=2, dtypes=(torch.float64,)).map(lambda d: (d[0][0], d[0][1]))


def scalar(value: float, *, dense: dict[str, torch.Tensor] | None = None) -> LoraAdapter:
    factor = torch.tensor([[value]], dtype=torch.float64)
    return LoraAdapter({"m": LoraPair(factor, factor.clone())}, dense or {})


def product(adapter: LoraAdapter) -> float:
    return float(dense_product(adapter.pairs["m"]))


def plain(pair: LoraPair) -> tuple[list[list[float]], list[list[float]], float]:
    return pair.a.double().tolist(), pair.b.double().tolist(), pair.scaling


def assert_product(pair: LoraPair, expected: list[list[float]], p: LoraPair, g: LoraPair) -> None:
    size_b = sum(abs(side.scaling) * float(side.b.abs().max()) for side in (p, g))
    size = size_b * sum(float(side.a.abs().max()) * side.rank for side in (p, g))
    atol = 10 * torch.finfo(pair.a.dtype).eps * size
    torch.testing.assert_close(dense_product(pair), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


P, G = scalar(1.0), scalar(2.0)
W = (0.6, 0.4)


@pytest.mark.parametrize(("form", "expected"), [("cat", 2.2), ("svd", 2.2), ("factors", 1.96)])
def test_forms_give_their_worked_numbers(form, expected):
    assert product(fuse(P, G, W, form=form)) == pytest.approx(expected, abs=1e-12)


def test_oracles_give_the_three_worked_numbers():
    sides = (([[1.0]], [[1.0]], 1.0), ([[2.0]], [[2.0]], 1.0))
    found = [oracle(*sides, W)[0][0] for oracle in (exact, lorahub, peft_linear)]
    assert found == pytest.approx([2.2, 1.96, 4.1596], abs=5e-5)
    halves = [oracle(sides[1], sides[1], (0.5, 0.5))[0][0] for oracle in (exact, lorahub, peft_linear)]
    assert halves == pytest.approx([4.0, 4.0, 8.0])


@laws
@given(two_sides, two_weights)
def test_cat_is_exact_whatever_ranks_and_scalings(sides: Sides, weights):
    fused = fuse(*sides, weights)
    for path, pair in fused.pairs.items():
        p, g = (side.pairs[path] for side in sides)
        assert (pair.rank, pair.scaling, pair.form) == (p.rank + g.rank, 1.0, p.form)
        assert_product(pair, exact(plain(p), plain(g), weights), p, g)


@laws
@given(two_sides, st.booleans())
def test_one_side_alone_comes_out_bit_for_bit(sides: Sides, is_personal):
    fused = fuse(*sides, (1.0, 0.0) if is_personal else (0.0, 1.0))
    kept = fold_scaling(sides[0 if is_personal else 1])
    for path, pair in fused.pairs.items():
        own = slice(0, kept.pairs[path].rank) if is_personal else slice(pair.rank - kept.pairs[path].rank, None)
        assert torch.equal(pair.a[own], kept.pairs[path].a)
        assert torch.equal(pair.b[:, own], kept.pairs[path].b)
        assert pair.b.count_nonzero() == kept.pairs[path].b.count_nonzero()
    for name, tensor in fused.dense.items():
        assert torch.equal(tensor, kept.dense[name])


@laws
@given(two_equal_sides, st.sampled_from(("svd", "factors")), st.booleans())
def test_one_side_alone_is_its_update_in_every_form(sides: Sides, form, is_personal):
    kept = sides[0 if is_personal else 1]
    fused = fuse(*sides, (1.0, 0.0) if is_personal else (0.0, 1.0), form=form)
    eps = torch.finfo(next(iter(kept.pairs.values())).a.dtype).eps
    assert fused.ranks == kept.ranks
    assert adapter_distance(fused, kept) <= 50 * eps * adapter_norm(kept)


@laws
@given(two_doubles, two_weights, st.integers(1, 12))
def test_svd_is_the_best_cut_of_cat(sides: Sides, weights, rank):
    assert fuse(*sides, weights, form="svd").ranks == {p: max(s.ranks[p] for s in sides) for p in sides[0].pairs}
    whole, cut = fuse(*sides, weights), fuse(*sides, weights, form="svd", rank=rank)
    assert set(cut.ranks.values()) == {rank}
    tail = sum(float(spectrum(pair)[rank:].square().sum()) for pair in whole.pairs.values())
    size = sum(adapter_norm(side) for side in sides)
    assert adapter_distance(cut, whole) == pytest.approx(math.sqrt(tail), rel=1e-8, abs=1e-12 * size)


@laws
@given(two_equal_sides, two_weights)
def test_factors_match_the_oracle_and_hold_cross_terms(sides: Sides, weights):
    fused = fuse(*sides, weights, form="factors")
    for path, pair in fused.pairs.items():
        p, g = (side.pairs[path] for side in sides)
        assert_product(pair, lorahub(plain(p), plain(g), weights), p, g)
        crossed = p.scaling * p.b.double() @ g.a.double() + g.scaling * g.b.double() @ p.a.double()
        squares = weights[0] ** 2 * dense_product(p) + weights[1] ** 2 * dense_product(g)
        assert_product(pair, (squares + weights[0] * weights[1] * crossed).tolist(), p, g)


@laws
@given(adapters(), st.sampled_from(("cat", "svd", "factors")))
def test_halves_of_one_adapter_with_itself_are_that_adapter(adapter: LoraAdapter, form):
    fused = fuse(adapter, adapter, (0.5, 0.5), form=form)
    eps = torch.finfo(next(iter(adapter.pairs.values())).a.dtype).eps
    assert adapter_distance(fused, adapter) <= 50 * eps * adapter_norm(adapter)
    assert all(torch.equal(tensor, adapter.dense[name]) for name, tensor in fused.dense.items())


@laws
@given(two_equal_sides, two_weights, st.sampled_from(("cat", "svd", "factors")))
def test_inputs_are_untouched(sides: Sides, weights, form):
    before = [copy.deepcopy(to_state_dict(side)) for side in sides]
    for pair in fuse(*sides, weights, form=form).pairs.values():
        pair.a.fill_(7.0)
        pair.b.fill_(7.0)
    for side, was in zip(sides, before, strict=True):
        assert all(torch.equal(tensor, was[key]) for key, tensor in to_state_dict(side).items())


@pytest.mark.parametrize("form", ["cat", "svd", "factors"])
def test_module_of_one_side_counts_with_its_weight(form):
    own = LoraAdapter({**P.pairs, "mine": P.pairs["m"]})
    other = LoraAdapter({**G.pairs, "theirs": G.pairs["m"]})
    fused = fuse(own, other, W, form=form)
    assert list(fused.pairs) == ["m", "mine", "theirs"]
    assert float(dense_product(fused.pairs["mine"])) == pytest.approx(0.6)
    assert float(dense_product(fused.pairs["theirs"])) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((0.6, 0.4), 1.4), ((3.0, 1.0), 1.25), ((1.5, -1.4), 1.0), ((-0.5, 1.0), 2.0), ((0.0, 0.0), 2.0), ((-1, -1), 2.0)],
)
def test_dense_tensors_stay_between_the_two(weights, expected):
    fused = fuse(scalar(1.0, dense={"h": torch.tensor([1.0])}), scalar(2.0, dense={"h": torch.tensor([2.0])}), weights)
    assert fused.dense["h"].tolist() == pytest.approx([expected])


def test_counters_take_the_maximum_and_lone_tensors_stay():
    own = scalar(1.0, dense={"n": torch.tensor([3, 9]), "mine": torch.tensor([5.0])})
    other = scalar(2.0, dense={"n": torch.tensor([4, 1]), "theirs": torch.tensor([6.0])})
    dense = fuse(own, other, W).dense
    assert {name: tensor.tolist() for name, tensor in dense.items()} == {"mine": [5.0], "n": [4, 9], "theirs": [6.0]}


def test_result_has_the_wider_dtype():
    single = LoraAdapter({"m": LoraPair(torch.ones(2, 1), torch.ones(1, 2))}, {"h": torch.ones(1)})
    half = cast(single, torch.bfloat16)
    fused = [fuse(*sides, w) for sides in ((half, single), (single, half)) for w in (W, (0.0, 0.0), (1.0, 0.0))]
    assert {dtype for f in fused for dtype in (f.pairs["m"].a.dtype, f.dense["h"].dtype)} == {torch.float32}
    assert fuse(half, half, W).pairs["m"].b.dtype == torch.bfloat16


def test_factors_of_different_ranks_are_refused():
    wider = LoraAdapter({"m": LoraPair(torch.ones(2, 1).double(), torch.ones(1, 2).double())})
    with pytest.raises(MixedRanksError, match=r'module m: .*got 2 \(personal\), 1 \(shared\).*"cat"'):
        fuse(wider, G, W, form="factors")
    assert product(fuse(wider, G, W)) == pytest.approx(0.6 * 2 + 0.4 * 4)


def test_sides_of_different_models_are_refused():
    wide = LoraPair(torch.ones(1, 3), torch.ones(1, 1))
    conv = LoraPair(torch.ones(1, 1), torch.ones(1, 1), form=LayerForm("conv", (1, 1, 1), (1, 1)))
    for other in (LoraAdapter({"m": wide}), LoraAdapter({"m": conv})):
        with pytest.raises(AdapterShapeError, match=r"module m: differs.*\(personal\)"):
            fuse(other, G, W)
    for tensor in (torch.ones(2), torch.tensor([1])):
        with pytest.raises(AdapterShapeError, match="tensor h: differs"):
            fuse(scalar(1.0, dense={"h": torch.ones(1)}), scalar(1.0, dense={"h": tensor}), W)


def test_bad_requests_are_refused():
    with pytest.raises(UnknownNameError, match="fusion form 'linear': unknown name; expected one of cat, factors, svd"):
        fuse(P, G, W, form="linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match='the form "cat" has no rank'):
        fuse(P, G, W, rank=2)
    with pytest.raises(AdapterShapeError, match="rank of 1 or more"):
        fuse(P, G, W, form="svd", rank=-1)
    with pytest.raises(InvalidWeightError, match="must be finite"):
        fuse(P, G, (math.nan, 1.0))
    with pytest.raises(NonFiniteUpdateError, match="personal adapter, tensor m factor a"):
        fuse(scalar(math.inf), G, (0.0, 1.0))


# --- search: with scalar sides of 1, "cat" shows the weights as the two columns of b ------------------------------

ONES = (scalar(1.0), scalar(1.0))


def weights_in(fused: LoraAdapter) -> tuple[float, float]:
    w_p, w_g = fused.pairs["m"].b[0].tolist()
    return w_p, w_g


@laws
@given(st.integers(2, 60), st.lists(st.sampled_from((0.0, 0.5, 1.0, -2.0, math.nan, math.inf, -math.inf)), min_size=1))
def test_search_keeps_its_budget_and_never_loses_to_a_side(budget, losses):
    seen = []

    def loss(fused: LoraAdapter) -> float:
        seen.append(weights_in(fused))
        return losses[len(seen) % len(losses)]

    found = search_fusion(*ONES, loss, budget=budget)
    assert found.evaluations == len(seen) == len(set(seen)) == budget
    assert seen[:2] == [(0.0, 1.0), (1.0, 0.0)]
    raw = [losses[(i + 1) % len(losses)] for i in range(len(seen))]
    raw = [value if math.isfinite(value) else math.inf for value in raw]
    assert (found.shared_loss, found.personal_loss, found.loss) == (*raw[:2], raw[seen.index(found.weights)])
    assert raw[seen.index(found.weights)] <= min(raw[:2])


@laws
@given(weight, weight, st.floats(0.2, 3.0), st.floats(-0.9, 0.9))
def test_search_comes_near_the_minimum_of_a_quadratic(best_p, best_g, stretch, tilt):
    def loss(fused: LoraAdapter) -> float:
        x, y = (found - best for found, best in zip(weights_in(fused), (best_p, best_g), strict=True))
        return x * x + stretch * y * y + 2 * tilt * math.sqrt(stretch) * x * y

    found = search_fusion(*ONES, loss, penalty=0.0)
    assert loss(fuse(*ONES, found.weights)) <= 0.05


def test_search_is_repeatable_and_its_weights_reproduce_its_loss():
    def loss(fused: LoraAdapter) -> float:
        return math.dist(weights_in(fused), (0.7, 0.4))

    found = search_fusion(*ONES, loss)
    assert search_fusion(*ONES, loss) == found
    assert loss(fuse(*ONES, found.weights, form=found.form)) == found.loss
    assert (found.personal_loss, found.shared_loss) == (math.dist((1, 0), (0.7, 0.4)), math.dist((0, 1), (0.7, 0.4)))


@pytest.mark.parametrize("constant", [1.0, math.nan, math.inf])
def test_without_evidence_the_shared_adapter_stays(constant):
    assert search_fusion(*ONES, lambda _: constant).weights == (0.0, 1.0)


def test_better_side_stays_where_no_fusion_beats_it():
    found = search_fusion(*ONES, lambda fused: 0.0 if weights_in(fused) == (1.0, 0.0) else 1.0)
    assert (found.weights, found.loss) == ((1.0, 0.0), 0.0)


def test_penalty_prefers_smaller_weights_among_those_that_beat_both_sides():
    def loss(fused: LoraAdapter) -> float:
        return 1.0 if weights_in(fused) in {(0.0, 1.0), (1.0, 0.0)} else 1.0 - 0.01 * sum(map(abs, weights_in(fused)))

    free, charged = (search_fusion(*ONES, loss, penalty=penalty) for penalty in (0.0, 0.05))
    assert sum(map(abs, free.weights)) > 1.5
    assert sum(map(abs, charged.weights)) < 0.1


def test_nothing_to_measure_on_means_the_shared_adapter():
    found = search_fusion(*ONES, None, form="svd")
    assert (found.weights, found.loss, found.evaluations, found.form) == ((0.0, 1.0), None, 0, "svd")


def test_search_measures_the_form_it_was_asked_for():
    found = search_fusion(P, G, lambda fused: abs(product(fused) - 1.96), form="factors", penalty=0.0)
    assert product(fuse(P, G, found.weights, form="factors")) == pytest.approx(1.96, abs=0.1)
    with pytest.raises(UnknownNameError):
        search_fusion(P, G, None, form="linear")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "option", [{"budget": 1}, {"bound": 0.9}, {"bound": math.inf}, {"penalty": -0.1}, {"penalty": math.nan}]
)
def test_search_refuses_options_out_of_range(option):
    with pytest.raises(ConfigError, match=f"fusion {next(iter(option))}: is out of range"):
        search_fusion(*ONES, lambda _: 1.0, **option)
