"""The laws every aggregator is held to, as plain functions of (aggregate, row, updates, weights).

`test_laws` runs them on the real methods over drawn cohorts, `test_mutants` on broken ones over fixed cohorts. A law
that a row does not promise is not in its list: see `laws_of`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.aggregators.table import Aggregator
from tasks.errors import NonFiniteUpdateError
from tests.aggregators.cases import Aggregate, by_oracle, distance, same_bits, tensors, tolerance

Law = Callable[[Aggregate, Aggregator, list[LoraAdapter], list[float]], None]


def single_client_is_identity(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result = aggregate(updates[:1], weights[:1])
    assert same_bits(result, fold_scaling(updates[0]))
    for path, pair in updates[0].pairs.items():
        ours = result.pairs[path]
        torch.testing.assert_close(ours.scaling * ours.b @ ours.a, pair.scaling * pair.b @ pair.a)


def client_order_is_irrelevant(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result = aggregate(updates, weights)
    assert distance(result, aggregate(updates[::-1], weights[::-1])) <= tolerance(_largest(updates))


def weight_scale_is_irrelevant(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    scaled = aggregate(updates, [3.7 * w for w in weights])
    assert distance(aggregate(updates, weights), scaled) <= tolerance(_largest(updates))


def every_client_matters(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result = aggregate(updates, weights)
    for k, update in enumerate(updates):
        moved = [*updates[:k], _shifted(update, 100.0), *updates[k + 1 :]]
        assert distance(result, aggregate(moved, weights)) > 10 * tolerance(_largest(updates))


def weights_matter(aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]) -> None:
    apart = [_shifted(updates[0], 100.0), *updates[1:]]
    heavier = [2000.0 * max(weights), *weights[1:]]
    assert distance(aggregate(apart, weights), aggregate(apart, heavier)) > 0.01


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


def equal_ranks_are_the_weighted_mean(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    ranks = {path: min(u.ranks[path] for u in updates) for path in updates[0].pairs}
    level = [row.share(u, ranks) for u in updates]
    expected = by_oracle("fedavg", level, weights)
    assert distance(aggregate(level, weights), expected) <= tolerance(_largest(level))


def oracle_agrees(aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]) -> None:
    result = aggregate(updates, weights)
    assert distance(result, by_oracle(row.name, updates, weights)) <= tolerance(_largest(updates))


def output_has_the_largest_rank(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result = aggregate(updates, weights)
    assert result.ranks == {path: max(u.ranks[path] for u in updates) for path in updates[0].pairs}


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
        LoraAdapter({p: replace(pair, b=pair.b / 2, scaling=pair.scaling * 2) for p, pair in u.pairs.items()}, u.dense)
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


def low_ranks_cannot_move_higher_slots(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    for path in updates[0].pairs:
        low = min(u.ranks[path] for u in updates)
        owners = [k for k, u in enumerate(updates) if u.ranks[path] > low]
        if not owners:
            continue
        above = aggregate(updates, weights).pairs[path]
        alone = aggregate([updates[k] for k in owners], [weights[k] for k in owners]).pairs[path]
        torch.testing.assert_close(above.a[low:], alone.a[low:])
        torch.testing.assert_close(above.b[:, low:], alone.b[:, low:])


def noop_round_is_a_fixed_point(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    first = fold_scaling(updates[0])
    returned = [row.share(first, {p: min(r, u.ranks[p]) for p, r in first.ranks.items()}) for u in updates]
    assert same_bits(aggregate(returned, weights, previous=first), first)
    # The client that held every slot stays away: its slots must survive the round.
    assert same_bits(aggregate(returned[1:], weights[1:], previous=first), first)


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
    plain = aggregate(updates, weights)
    assert torch.equal(result.pairs["nobody.trains"].a, larger.a)
    assert bool((result.pairs["nobody.trains"].b == 2.0).all())
    assert torch.equal(result.dense["nobody.sends"], torch.ones(3))
    assert torch.equal(result.pairs[path].a[:top], plain.pairs[path].a)
    if row.noop_fixed_point:
        assert torch.equal(result.pairs[path].a[top:], larger.a[top:])
        assert bool((result.pairs[path].b[:, top:] == 2.0).all())


_FOR_ALL: tuple[Law, ...] = (
    single_client_is_identity,
    client_order_is_irrelevant,
    weight_scale_is_irrelevant,
    every_client_matters,
    weights_matter,
    inputs_are_untouched,
    non_finite_raises,
    equal_ranks_are_the_weighted_mean,
    oracle_agrees,
    output_has_the_largest_rank,
    form_and_dtype_are_kept,
    scale_is_folded,
    missing_modules_are_averaged_over_the_rest,
    untrained_parts_keep_the_previous_value,
)


def laws_of(row: Aggregator) -> dict[str, Law]:
    """Return the laws a row promises to keep, by name."""
    laws = list(_FOR_ALL)
    if row.noop_fixed_point:
        laws.append(noop_round_is_a_fixed_point)
    if row.mixed_ranks and row.noop_fixed_point and not row.gauge_invariant:
        laws.append(low_ranks_cannot_move_higher_slots)
    return {law.__name__: law for law in laws}


def _largest(updates: list[LoraAdapter]) -> LoraAdapter:
    return max((fold_scaling(u) for u in updates), key=lambda u: max(float(t.abs().max()) for t in tensors(u).values()))


def _shifted(update: LoraAdapter, by: float) -> LoraAdapter:
    return LoraAdapter({p: replace(pair, a=pair.a + by) for p, pair in update.pairs.items()}, update.dense)


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
