"""The law suite can fail: each of these faults, most of them seen in published code, turns it red."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from tasks.adapters.lora import LoraAdapter, prefix
from tasks.adapters.resize import resize
from tasks.aggregators import slot_means
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.table import AGGREGATORS
from tests.aggregators.cases import Aggregate, mixed_cohort, suited, tensors
from tests.aggregators.laws import laws_of

real = partial(aggregate, "rbla")


def first_client_only(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    return real(updates[:1], weights[:1], previous=previous)


def ignores_weights(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    return real(updates, [1.0] * len(weights), previous=previous)


def reads_nan_as_absent(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    kept = [k for k, u in enumerate(updates) if all(bool(t.isfinite().all()) for t in tensors(u).values())]
    return real([updates[k] for k in kept], [weights[k] for k in kept], previous=previous)


def accumulates_in_its_input(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_means, "own_module", lambda mean: mean)
        return real(updates, weights, previous=previous)


def truncates_to_min_rank(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    paths = {path for u in updates for path in u.pairs}
    low = {path: min(u.ranks[path] for u in updates if path in u.pairs) for path in paths}
    cut = [prefix(u, {path: low[path] for path in u.pairs}) for u in updates]
    return real(cut, weights, previous=previous)


def pads_only_b(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    padded = aggregate("zero_pad", updates, weights, previous=previous)
    right = real(updates, weights, previous=previous)
    pairs = {path: replace(pair, b=padded.pairs[path].b) for path, pair in right.pairs.items()}
    return LoraAdapter(pairs, right.dense)


def forgets_to_normalise(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    mean, total = real(updates, weights, previous=previous), sum(weights)
    pairs = {path: replace(pair, a=pair.a * total, b=pair.b * total) for path, pair in mean.pairs.items()}
    return LoraAdapter(pairs, {name: tensor * total for name, tensor in mean.dense.items()})


def depends_on_order(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    return real(updates, [w * (k + 1) for k, w in enumerate(weights)], previous=previous)


def weights_on_both_factors(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    shares = [w / sum(weights) for w in weights]
    heavy = [_with_a_times(u, share) for u, share in zip(updates, shares, strict=True)]
    return aggregate("flora_stack", heavy, weights, previous=previous)


def weights_omitted(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    whole = [_with_a_times(u, sum(weights) / w) for u, w in zip(updates, weights, strict=True)]
    return aggregate("flora_stack", whole, weights, previous=previous)


def factor_average_posing_as_flora(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    ranks = {path: sum(u.ranks.get(path, 0) for u in updates) for u in updates for path in u.pairs}
    mean = aggregate("zero_pad", updates, weights, previous=previous)
    return resize(mean, {path: max(ranks.get(path, 1), rank) for path, rank in mean.ranks.items()})


def svd_of_unfolded_factors(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    bare = [LoraAdapter({p: replace(v, scaling=1.0) for p, v in u.pairs.items()}, u.dense) for u in updates]
    return aggregate("flexlora", bare, weights, previous=previous)


posing = {name: partial(aggregate, name) for name in AGGREGATORS}  # one method under another's name

MUTANTS: list[tuple[str, Callable[..., LoraAdapter], set[str]]] = [
    ("rbla", first_client_only, {"every_client_matters", "client_order_is_irrelevant", "oracle_agrees"}),
    ("rbla", ignores_weights, {"weights_matter", "oracle_agrees"}),
    ("rbla", reads_nan_as_absent, {"non_finite_raises"}),
    ("rbla", accumulates_in_its_input, {"inputs_are_untouched"}),
    ("rbla", truncates_to_min_rank, {"output_rank_is_the_rows", "oracle_agrees"}),
    ("rbla", pads_only_b, {"low_ranks_cannot_move_higher_slots", "oracle_agrees"}),
    ("rbla", forgets_to_normalise, {"single_client_is_identity", "weight_scale_is_irrelevant", "oracle_agrees"}),
    ("rbla", depends_on_order, {"client_order_is_irrelevant", "oracle_agrees"}),
    ("rbla", posing["zero_pad"], {"low_ranks_cannot_move_higher_slots", "noop_round_is_a_fixed_point"}),
    ("flora_stack", weights_on_both_factors, {"exact_rows_reproduce_the_mean_of_products", "oracle_agrees"}),
    ("flora_stack", weights_omitted, {"exact_rows_reproduce_the_mean_of_products", "weights_matter"}),
    ("flora_stack", factor_average_posing_as_flora, {"exact_rows_reproduce_the_mean_of_products", "oracle_agrees"}),
    ("flexlora", svd_of_unfolded_factors, {"scale_is_folded"}),
    ("raflora", posing["flexlora"], {"noop_round_is_a_fixed_point", "oracle_agrees"}),
    ("raflora_canonical", posing["raflora"], {"factors_do_not_matter_beyond_their_product"}),
    ("zero_pad", posing["hetlora"], {"merging_clients_of_one_rank_changes_nothing", "oracle_agrees"}),
    ("delta_svd", posing["raflora_canonical"], {"changes_are_added_to_the_bank", "oracle_agrees"}),
    ("delta_svd", posing["flexlora"], {"changes_are_added_to_the_bank", "noop_round_is_a_fixed_point"}),
    ("fedex", posing["fedavg"], {"exact_rows_reproduce_the_mean_of_products", "oracle_agrees"}),
    ("fedex", posing["flora_stack"], {"means_come_first_and_the_residual_behind"}),
]
ROWS = sorted({name for name, _, _ in MUTANTS})


def label(value: object) -> str:
    if isinstance(value, partial):
        return f"{value.args[0]}_posing"
    return getattr(value, "__name__", value if isinstance(value, str) else "")


@pytest.mark.parametrize(("name", "mutant", "catchers"), MUTANTS, ids=label)
def test_suite_turns_red_for_mutant(name: str, mutant: Aggregate, catchers: set[str]):
    assert catchers <= red_laws(name, mutant)


@pytest.mark.parametrize("name", ROWS)
def test_suite_is_green_for_the_real_method(name: str):
    assert red_laws(name, partial(aggregate, name)) == set()


def test_nan_mutant_is_caught_by_its_own_law_alone():
    assert red_laws("rbla", reads_nan_as_absent) == {"non_finite_raises"}


def red_laws(name: str, method: Aggregate) -> set[str]:
    """Name the laws of a row that a method breaks on any of the fixed cohorts."""
    row, red = AGGREGATORS[name], set()
    for law_name, law in laws_of(row).items():
        for seed in (1, 2):
            # Fresh tensors for every law: a mutant that writes to its input must not spoil the next law's.
            updates, weights = mixed_cohort(seed)
            try:
                law(method, row, suited(row, updates), weights)
            except AssertionError:  # A mutant that merely crashed would prove nothing about the laws.
                red.add(law_name)
    return red


def _with_a_times(update: LoraAdapter, factor: float) -> LoraAdapter:
    return LoraAdapter({p: replace(v, a=v.a * factor) for p, v in update.pairs.items()}, update.dense)
