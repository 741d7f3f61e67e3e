"""The law suite can fail: each of nine faults, most of them seen in published code, turns it red."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from tasks.adapters.lora import LoraAdapter, prefix
from tasks.aggregators import slot_means
from tasks.aggregators.table import AGGREGATORS, aggregate
from tasks.errors import RankweaveError
from tests.aggregators.cases import Aggregate, client, tensors
from tests.aggregators.laws import laws_of
from tests.strategies import normal

ROW = AGGREGATORS["rbla"]
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


def zero_pad_posing_as_rbla(
    updates: Sequence[LoraAdapter], weights: Sequence[float], *, previous: LoraAdapter | None = None
) -> LoraAdapter:
    return aggregate("zero_pad", updates, weights, previous=previous)


MUTANTS: list[tuple[Callable[..., LoraAdapter], set[str]]] = [
    (first_client_only, {"every_client_matters", "client_order_is_irrelevant", "oracle_agrees"}),
    (ignores_weights, {"weights_matter", "oracle_agrees"}),
    (reads_nan_as_absent, {"non_finite_raises"}),
    (accumulates_in_its_input, {"inputs_are_untouched"}),
    (truncates_to_min_rank, {"output_has_the_largest_rank", "oracle_agrees"}),
    (pads_only_b, {"low_ranks_cannot_move_higher_slots", "oracle_agrees"}),
    (forgets_to_normalise, {"single_client_is_identity", "weight_scale_is_irrelevant", "oracle_agrees"}),
    (depends_on_order, {"client_order_is_irrelevant", "oracle_agrees"}),
    (zero_pad_posing_as_rbla, {"low_ranks_cannot_move_higher_slots", "noop_round_is_a_fixed_point"}),
]


@pytest.mark.parametrize(("mutant", "catchers"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_suite_turns_red_for_mutant(mutant: Aggregate, catchers: set[str]):
    assert catchers <= red_laws(mutant)


def test_suite_is_green_for_the_real_method():
    assert red_laws(real) == set()


def test_nan_mutant_is_caught_by_its_own_law_alone():
    assert red_laws(reads_nan_as_absent) == {"non_finite_raises"}


def red_laws(method: Aggregate) -> set[str]:
    """Name the laws that a method breaks on any of the fixed cohorts."""
    red = set()
    for name, law in laws_of(ROW).items():
        for seed in (1, 2):
            # Fresh tensors for every law: a mutant that writes to its input must not spoil the next law's.
            updates, weights = fixed_cohort(seed)
            try:
                law(method, ROW, updates, weights)
            except (AssertionError, RankweaveError):
                red.add(name)
    return red


def fixed_cohort(seed: int) -> tuple[list[LoraAdapter], list[float]]:
    """Build three clients of unequal rank over two modules, the one of the largest rank first."""
    ranks = [{"layers.0": 4, "layers.1": 3}, {"layers.0": 1, "layers.1": 3}, {"layers.0": 2, "layers.1": 1}]
    updates = [
        client(
            r, 1000 * seed + 50 * k, dtype=torch.float64, dense={"head": normal((3,), seed + k, dtype=torch.float64)}
        )
        for k, r in enumerate(ranks)
    ]
    return updates, [40.0, 120.0, 70.0]
