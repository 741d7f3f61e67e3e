"""The laws every aggregator is held to, as plain functions of (aggregate, row, updates, weights).

Cohorts are `suited` to the row; compared is what it averages (`seen`). What only some promise is in `promised_laws`.
"""

from dataclasses import replace

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.aggregators.options import BANK_FACTOR
from tasks.aggregators.promises import Aggregator
from tasks.errors import NonFiniteUpdateError
from tests.aggregators.cases import (
    Aggregate,
    Law,
    allowance,
    by_oracle,
    cast,
    distance,
    earlier,
    gap,
    products,
    rounding,
    same_bits,
    seen,
    shifted,
    tensors,
)
from tests.aggregators.promised_laws import promised_laws


def single_client_is_identity(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result = aggregate(updates[:1], weights[:1])
    if row.averages == "slots":
        assert same_bits(seen(row, result), seen(row, updates[0]))
    if row.sends != "a":
        assert distance(products(result), products(updates[0])) <= 10 * allowance(row, updates[0])


def client_order_is_irrelevant(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    backwards = aggregate(updates[::-1], weights[::-1])
    assert gap(row, aggregate(updates, weights), backwards) <= allowance(row, *updates)


def weight_scale_is_irrelevant(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    scaled = [3.7 * w for w in weights]
    assert gap(row, aggregate(updates, weights), aggregate(updates, scaled)) <= allowance(row, *updates)


def every_client_matters(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result = aggregate(updates, weights)
    for k, update in enumerate(updates):
        moved = [*updates[:k], shifted(row, update, 100.0), *updates[k + 1 :]]
        assert gap(row, result, aggregate(moved, weights)) > 10 * allowance(row, *updates)


def inputs_are_untouched(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    before = [{n: t.clone() for n, t in tensors(u).items()} for u in updates]
    lent = list(weights)
    aggregate(updates, lent, previous=updates[-1])
    assert lent == weights
    for update, copies in zip(updates, before, strict=True):
        assert all(torch.equal(t, copies[n]) for n, t in tensors(update).items())


def non_finite_raises(aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        for name in tensors(updates[-1]):
            spoilt = [*updates[:-1], _with_entry(updates[-1], name, value)]
            assert _raises_non_finite(aggregate, spoilt, weights), (name, value)


def oracle_agrees(aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]) -> None:
    exact = by_oracle(row.name, updates, weights)
    assert gap(row, aggregate(updates, weights), exact) <= allowance(row, *updates)


def half_precision_costs_one_rounding(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        short = [cast(u, dtype) for u in updates]
        result = aggregate(short, weights)
        assert {t.dtype for t in tensors(result).values()} == {dtype}
        exact, bounds = tensors(by_oracle(row.name, short, weights)), rounding(row, result)
        for name, tensor in tensors(seen(row, result)).items():
            assert bool(((tensor.double() - exact[name]).abs() <= bounds[name]).all()), (dtype, name)


def mixed_dtypes_are_summed_in_the_wider_one(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    short = [cast(u, torch.bfloat16) for u in updates]
    mixed = [cast(u, torch.float32) if k % 2 else u for k, u in enumerate(short)]
    result = aggregate(mixed, weights)
    assert {t.dtype for t in tensors(result).values()} == {torch.float32}
    exact = by_oracle(row.name, mixed, weights)
    assert gap(row, result, exact) <= allowance(row, *(cast(u, torch.float32) for u in short))


def output_rank_is_the_rows(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    for old in (None, earlier(updates)):
        result = aggregate(updates, weights, previous=old)
        for path, pair in result.pairs.items():
            ranks, smaller = [u.ranks[path] for u in updates], min(pair.b.shape[0], pair.a.shape[1])
            least, most = _promised_rank(row, ranks, 0 if old is None else old.ranks[path], smaller)
            assert least <= pair.rank <= most


def form_and_dtype_are_kept(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result = aggregate(updates, weights)
    for path, pair in updates[0].pairs.items():
        ours = result.pairs[path]
        assert (ours.form, ours.a.dtype, ours.b.dtype) == (pair.form, pair.a.dtype, pair.b.dtype)
    assert {n: t.dtype for n, t in result.dense.items()} == {n: t.dtype for n, t in updates[0].dense.items()}


def scale_is_folded(aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]) -> None:
    doubled = [
        LoraAdapter({p: replace(v, b=v.b / 2, scaling=v.scaling * 2) for p, v in u.pairs.items()}, u.dense)
        for u in updates
    ]
    result = aggregate(doubled, weights)
    assert same_bits(result, aggregate(updates, weights))
    assert all(pair.scaling == 1.0 for pair in result.pairs.values())


def missing_modules_are_averaged_over_the_rest(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    path = next(iter(updates[0].pairs))
    less = LoraAdapter({p: v for p, v in updates[0].pairs.items() if p != path}, {})
    result = aggregate([less, *updates[1:]], weights)
    rest = aggregate(updates[1:], weights[1:])
    for part in (result, rest):
        assert part.pairs.keys() == updates[0].pairs.keys()
    assert torch.equal(result.pairs[path].a, rest.pairs[path].a)
    assert torch.equal(result.pairs[path].b, rest.pairs[path].b)
    assert all(torch.equal(result.dense[n], t) for n, t in rest.dense.items())


def untrained_parts_keep_the_previous_value(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    path, like = next(iter(updates[0].pairs.items()))
    top = max(u.ranks[path] for u in updates)
    larger = LoraPair(
        torch.full((top + 2, like.a.shape[1]), 2.0, dtype=like.a.dtype),
        torch.full((like.b.shape[0], top + 2), 0.25, dtype=like.a.dtype),
        8.0,
        like.form,
    )
    old = LoraAdapter({path: larger, "nobody.trains": larger}, {"nobody.sends": torch.ones(3)})
    result = aggregate(updates, weights, previous=old)
    assert torch.equal(result.pairs["nobody.trains"].a, larger.a)
    assert bool((result.pairs["nobody.trains"].b == 2.0).all())
    assert torch.equal(result.dense["nobody.sends"], torch.ones(3))
    if row.averages == "products":
        return  # What becomes of slots in between is each method's own; the fixed point covers those it keeps.
    assert torch.equal(result.pairs[path].a[:top], aggregate(updates, weights).pairs[path].a)
    if row.noop_fixed_point:
        assert torch.equal(result.pairs[path].a[top:], larger.a[top:])
        assert bool((result.pairs[path].b[:, top:] == 2.0).all())


_FOR_ALL: tuple[Law, ...] = (
    single_client_is_identity,
    client_order_is_irrelevant,
    weight_scale_is_irrelevant,
    every_client_matters,
    inputs_are_untouched,
    non_finite_raises,
    oracle_agrees,
    half_precision_costs_one_rounding,
    mixed_dtypes_are_summed_in_the_wider_one,
    output_rank_is_the_rows,
    form_and_dtype_are_kept,
    scale_is_folded,
    missing_modules_are_averaged_over_the_rest,
    untrained_parts_keep_the_previous_value,
)


def laws_of(row: Aggregator) -> dict[str, Law]:
    """Return the laws a row promises to keep, by name."""
    return {law.__name__: law for law in (*_FOR_ALL, *promised_laws(row))}


def _with_entry(update: LoraAdapter, name: str, value: float) -> LoraAdapter:
    spoilt = {n: t.clone() for n, t in tensors(update).items()}
    spoilt[name].view(-1)[-1] = value
    pairs = {p: replace(pair, a=spoilt[f"{p}.a"], b=spoilt[f"{p}.b"]) for p, pair in update.pairs.items()}
    return LoraAdapter(pairs, {n: spoilt[n] for n in update.dense})


def _raises_non_finite(aggregate: Aggregate, updates: list[LoraAdapter], weights: list[float]) -> bool:
    try:
        aggregate(updates, weights)
    except NonFiniteUpdateError:
        return True
    return False


def _promised_rank(row: Aggregator, ranks: list[int], before: int, smaller: int) -> tuple[int, int]:
    """Return the bounds of a result's rank, given the previous adapter's (0: none) and the layer's smaller size."""
    largest = max(*ranks, before)
    if row.rank == "largest":
        return largest, largest
    if row.rank == "bank":
        bank = min(int(BANK_FACTOR.default) * max(ranks), smaller) if before else 0
        return max(largest, bank), max(largest, bank)
    most = sum(ranks) + min(before, smaller)
    return (most if row.downlink == "stack" else max(ranks)), most
