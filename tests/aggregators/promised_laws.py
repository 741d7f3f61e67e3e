"""The laws that only some aggregators promise, as plain functions of (aggregate, row, updates, weights).

Which row promises what is read from the table alone; what all of them keep is in `laws`.
"""

from dataclasses import replace

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling, prefix
from tasks.adapters.products import dense_product, truncate
from tasks.aggregators.promises import Aggregator
from tests.aggregators.cases import (
    Aggregate,
    Law,
    allowance,
    by_oracle,
    cast,
    distance,
    earlier,
    f64,
    gap,
    gauged,
    level_mean,
    plain,
    products,
    same_bits,
    shifted,
)
from tests.oracles import delta_svd, fedex

Cohort = tuple[list[LoraAdapter], list[float]]


def halves_of_a_client_count_as_one(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    split = aggregate([updates[0], *updates], [weights[0] / 2, weights[0] / 2, *weights[1:]])
    assert gap(row, aggregate(updates, weights), split) <= allowance(row, *updates)


def weights_matter(aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]) -> None:
    bare = [LoraAdapter(u.pairs, {}) for u in updates]
    apart = [shifted(row, bare[0], 100.0), *bare[1:]]
    heavier = [2000.0 * max(weights), *weights[1:]]
    assert gap(row, aggregate(apart, weights), aggregate(apart, heavier)) > 0.01


def equal_ranks_are_the_weighted_mean(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    lows = {path: min(u.ranks[path] for u in updates) for path in updates[0].pairs}
    level = [prefix(u, lows) for u in updates]
    assert gap(row, aggregate(level, weights), level_mean(row, level, weights)) <= allowance(row, *level)


def low_ranks_cannot_move_higher_slots(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    lows = {path: min(u.ranks[path] for u in updates) for path in updates[0].pairs}
    for path, low in lows.items():
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
    if row.gauge_invariant:
        # The global adapters of these methods have their slots by falling singular value; in float64, so that
        # directions of near-equal strength are the same ones for everybody.
        wide = cast(first, torch.float64)
        first = LoraAdapter({p: truncate(pair, pair.rank) for p, pair in wide.pairs.items()}, wide.dense)
    returned = [row.share(first, {p: min(r, u.ranks[p]) for p, r in first.ranks.items()}) for u in updates]
    # The second time, the client that held every slot stays away: its slots must survive the round.
    for absent in (0, 1):
        result = aggregate(returned[absent:], weights[absent:], previous=first)
        if row.averages == "slots":
            assert same_bits(result, first)
        assert gap(row, result, first) <= allowance(row, first)


def exact_rows_reproduce_the_mean_of_products(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    result, exact = products(aggregate(updates, weights)), by_oracle("flora_stack", updates, weights)
    assert distance(result, exact) <= allowance(replace(row, averages="products"), *updates)


def factors_do_not_matter_beyond_their_product(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    wide = [cast(u, torch.float64) for u in updates]
    result = aggregate(wide, weights)
    turned = aggregate([gauged(u, 31 + 10 * k) for k, u in enumerate(wide)], weights)
    assert gap(row, result, turned) <= 100 * allowance(row, *wide)


def merging_clients_of_one_rank_changes_nothing(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    apart, together = two_merged(updates, weights)
    assert gap(row, aggregate(*apart), aggregate(*together)) <= allowance(row, *apart[0])


def means_come_first_and_the_residual_behind(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    allowed = allowance(row, *updates)
    for path, pair in aggregate(updates, weights).pairs.items():
        clients, rank = plain(path, updates), updates[0].ranks[path]
        a, b = fedex.means(clients, weights)
        assert float((pair.a[:rank].double() - f64(a)).abs().max()) <= allowed
        assert float((pair.b[:, :rank].double() - f64(b)).abs().max()) <= allowed
        behind = dense_product(LoraPair(pair.a[rank:], pair.b[:, rank:]))
        assert float((behind - f64(fedex.residual(clients, weights))).abs().max()) <= allowed


def changes_are_added_to_the_bank(
    aggregate: Aggregate, row: Aggregator, updates: list[LoraAdapter], weights: list[float]
) -> None:
    # In float64, so that the held slots and the oracle's cuts of the held product are the same directions.
    wide = [cast(u, torch.float64) for u in updates]
    old = LoraAdapter({path: truncate(pair, pair.rank) for path, pair in earlier(wide).pairs.items()})
    for path, pair in aggregate(wide, weights, previous=old).pairs.items():
        held = dense_product(old.pairs[path]).numpy()
        exact = f64(delta_svd.delta_svd(plain(path, wide), weights, held, pair.rank))
        assert float((dense_product(pair) - exact).abs().max()) <= 10 * allowance(row, old, *wide)


def two_merged(updates: list[LoraAdapter], weights: list[float]) -> tuple[Cohort, Cohort]:
    """Return a cohort whose first two clients have equal ranks, and the same with their mean in place of the two."""
    lows = {path: min(u.ranks[path] for u in updates[:2]) for path in updates[0].pairs}
    one, two = (fold_scaling(prefix(u, lows)) for u in updates[:2])
    share, total = weights[1] / (weights[0] + weights[1]), weights[0] + weights[1]
    # Interpolated rather than summed: rows that the two share stay what they are.
    pairs = {
        path: replace(p, a=torch.lerp(p.a, two.pairs[path].a, share), b=torch.lerp(p.b, two.pairs[path].b, share))
        for path, p in one.pairs.items()
    }
    mean = LoraAdapter(pairs, {name: torch.lerp(t, two.dense[name], share) for name, t in one.dense.items()})
    return ([one, two, *updates[2:]], weights), ([mean, *updates[2:]], [total, *weights[2:]])


def promised_laws(row: Aggregator) -> list[Law]:
    """Return the laws that this row promises beyond those for all."""
    owners_only = row.averages == "slots" and row.mixed_ranks and row.noop_fixed_point
    promised = {
        weights_matter: row.weighs_by_examples,
        halves_of_a_client_count_as_one: row.weighs_by_examples,
        equal_ranks_are_the_weighted_mean: row.weighs_by_examples,
        merging_clients_of_one_rank_changes_nothing: row.needs == "sums",
        noop_round_is_a_fixed_point: row.noop_fixed_point,
        low_ranks_cannot_move_higher_slots: owners_only,
        exact_rows_reproduce_the_mean_of_products: row.exact_product,
        factors_do_not_matter_beyond_their_product: row.gauge_invariant,
        means_come_first_and_the_residual_behind: row.downlink == "residual",
        changes_are_added_to_the_bank: row.rank == "bank",
    }
    return [law for law, holds in promised.items() if holds]
