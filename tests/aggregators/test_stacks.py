"""What the stack behind the product methods does with shapes, weights, dtypes and lent memory."""

from dataclasses import replace

import pytest
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.stacks import ProductTerms, coverage, largest_rank, scaled, stacked, weighted_mean
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import AdapterShapeError, NonFiniteUpdateError
from tests.aggregators.cases import MISFITS, client, f1, f64, tensors

PRODUCT_ROWS = [name for name, row in AGGREGATORS.items() if row.needs == "updates" and row.averages == "products"]


def gathered(updates: list[LoraAdapter], weights: list[float]) -> ProductTerms:
    terms = ProductTerms()
    for position, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        terms.add(update, weight, subject=f"update {position}")
    return terms


def test_weights_stand_on_b_alone():
    mean = weighted_mean(gathered(f1(), [1.0, 3.0]).modules["m"])
    assert mean.a.tolist() == [[1, 2], [5, 6], [7, 8]]
    assert mean.b.tolist() == [[0.75, 0.75, 0], [1, 0, 1.5]]


def test_stack_is_the_sum_of_products():
    pairs = [u.pairs["m"] for u in f1()]
    whole = stacked(pairs)
    assert torch.equal(whole.b @ whole.a, pairs[0].b @ pairs[0].a + pairs[1].b @ pairs[1].a)


def test_scaling_a_pair_scales_every_slots_product_once():
    pair = f1()[1].pairs["m"]
    by = f64([2.0, 0.5])
    products = [torch.outer(scaled(pair, by).b[:, j], pair.a[j]) for j in (0, 1)]
    assert torch.equal(products[0], 2.0 * torch.outer(pair.b[:, 0], pair.a[0]))
    assert torch.equal(products[1], 0.5 * torch.outer(pair.b[:, 1], pair.a[1]))


def test_coverage_is_the_share_of_weight_that_owns_a_slot():
    terms = gathered([client({"m": rank}, rank) for rank in (2, 5, 3)], [2.0, 3.0, 5.0]).modules["m"]
    assert coverage(terms, 6).tolist() == [1.0, 1.0, 0.8, 0.3, 0.3, 0.0]
    assert coverage(terms, 2).tolist() == [1.0, 1.0]
    assert largest_rank(terms, None) == 5
    assert largest_rank(terms, client({"m": 7}, 1).pairs["m"]) == 7


def test_terms_do_not_follow_what_was_lent():
    update = client({"m": 2}, 1)
    terms = gathered([update], [1.0])
    before = terms.modules["m"][0].pair.a.clone()
    update.pairs["m"].a.zero_()
    assert torch.equal(terms.modules["m"][0].pair.a, before)


@pytest.mark.parametrize("other", MISFITS.values(), ids=MISFITS)
def test_modules_that_do_not_fit_are_refused(other: LoraPair):
    fits, misfit = client({"m": 2}, 1), LoraAdapter({"m": other})
    with pytest.raises(AdapterShapeError, match=r"update 1, module m: .*same base model"):
        gathered([fits, misfit], [1.0, 1.0])
    with pytest.raises(AdapterShapeError, match="later block of updates, module m"):
        gathered([fits], [1.0]).absorb(gathered([misfit], [1.0]))
    with pytest.raises(AdapterShapeError, match="previous adapter, module m"):
        aggregate("flexlora", [fits], [1.0], previous=misfit)


def test_refused_update_leaves_the_terms_as_they_were():
    terms = gathered([client({"m": 2}, 1)], [1.0])
    misfit = client({"a.first": 2, "m": 2}, 9, sizes=(6, 4))
    with pytest.raises(AdapterShapeError):
        terms.add(misfit, 1.0, subject="update 1")
    assert {path: len(found) for path, found in terms.modules.items()} == {"m": 1}


def test_rank_nought_is_refused():
    empty = LoraAdapter({"m": LoraPair(torch.ones(0, 5), torch.ones(4, 0))})
    with pytest.raises(AdapterShapeError, match="rank 0"):
        aggregate("flexlora", [empty], [1.0])


def test_non_finite_error_names_update_and_tensor():
    updates = [client({"m": 2}, seed) for seed in (1, 2)]
    updates[1].pairs["m"].a[0, 0] = float("inf")
    with pytest.raises(NonFiniteUpdateError, match="update 1, tensor m factor a"):
        aggregate("raflora", updates, [1.0, 1.0])


@pytest.mark.parametrize("name", PRODUCT_ROWS)
def test_fold_names_the_update_that_is_not_finite(name: str):
    updates, fold = [client({"m": 2, "n": 2}, seed) for seed in (1, 2, 3)], AGGREGATORS[name].fold()
    updates[1].pairs["n"].b[0, 0] = float("nan")
    for position, update in zip((0, 5, 70), updates, strict=True):
        fold.add(position, update, 1.0)
    with pytest.raises(NonFiniteUpdateError, match="update 5, tensor n factor b"):
        fold.finish(None)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_mixed_dtypes_come_out_in_the_wider_one(order: tuple[int, int]):
    pair = [client({"m": 2}, 3, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    result = aggregate("flexlora", [pair[k] for k in order], [1.0, 1.0])
    assert result.pairs["m"].a.dtype == torch.float64


@pytest.mark.parametrize("name", PRODUCT_ROWS)
def test_result_shares_no_memory_and_no_gradient_with_updates(name: str):
    pair = LoraPair(torch.ones(2, 5, requires_grad=True), torch.ones(4, 2, requires_grad=True), 2.0)
    update = LoraAdapter({"m": pair}, {"head": torch.ones(3, requires_grad=True)})
    same = LoraAdapter({"m": replace(pair, scaling=1.0)}, update.dense)
    result = tensors(aggregate(name, [update, same], [1.0, 3.0], previous=update))
    assert not any(t.requires_grad for t in result.values())
    lent = {t.data_ptr() for u in (update, same) for t in tensors(u).values()}
    assert all(t.data_ptr() not in lent for t in result.values())
