"""The tests of the schedulers can fail: each of these faults turns one of them red."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest

from tasks.rank_schedulers import budget, capability, energy, sa_annealing, smoothing, together
from tasks.rank_schedulers.table import rank_scheduler
from tests.rank_schedulers import (
    test_budget,
    test_capability,
    test_energy,
    test_sa_annealing,
    test_smoothing,
    test_together,
)

real_memory, real_seconds, real_smallest = capability._by_memory, capability._seconds, together._smallest


def without_overhead(costs, rank):
    return costs.values(rank) * (costs.uplink_bytes + costs.downlink_bytes)


def without_activations(known, *rest):
    return real_memory(msgspec.structs.replace(known, activation_bytes=0.0), *rest)


def trained_numbers_cost_no_time(known, costs, rank):
    return real_seconds(known, replace(costs, base_values=10**30), rank)


def links_without_overhead(known, costs, rank):
    return real_seconds(known, replace(costs, overhead_bytes=0.0), rank)


def only_the_upload(known, costs, rank):
    return {part: time for part, time in real_seconds(known, costs, rank).items() if "upload" in part}


def unknown_clients_are_free(signals, **values):
    bounds = capability.capability(signals, **values)
    return {client: bound for client, bound in bounds.items() if client in signals.capabilities}


def whole_population_every_round(signals, **values):
    return budget.budget(replace(signals, cohort_size=len(signals.ceilings)), **values)


def all_at_once(signals, **values):
    return budget.budget(replace(signals, rounds_done=signals.num_rounds - 1), **values)


def nothing_spent(signals, **values):
    return budget.budget(replace(signals, spent_bytes=0), **values)


def posing(name, propose):
    return replace(rank_scheduler(name), propose=propose)


def down_to_a_halving(rank, heating, floor):
    return max(floor, next(heating // 2**k for k in range(12) if heating // 2**k <= rank))


def no_memory_limits(client, signals, proposals):
    return real_smallest(client, replace(signals, limits={}), proposals)


ANNEALED = test_sa_annealing.test_curves_give_the_worked_table
SNAPPED = test_sa_annealing.test_snapping_keeps_to_few_ranks
MEMORY = partial(test_capability.test_memory_holds_sixteen_bytes_for_every_number_beside_the_activations, 0, 16)
TIME = test_capability.test_training_time_counts_six_for_a_trained_number_beside_four_for_a_frozen_one
LINK = test_capability.test_link_time_counts_the_bytes_of_its_direction_and_half_the_overhead
UNKNOWN = test_capability.test_clients_never_heard_of_start_low_and_those_that_measured_nothing_are_free
SPECTRUM = partial(test_energy.test_the_worked_spectrum_needs_as_many_slots_as_its_squares_say, 0.89, 1)
BUDGET = test_budget.test_worked_budget_is_shared_over_rounds_and_the_clients_a_round_draws
UNMEASURED = test_smoothing.test_what_one_did_not_measure_comes_from_the_other
LIMITED = test_together.test_a_memory_limit_holds_without_any_scheduler

MUTANTS: dict[str, tuple[object, str, Any, Callable[[], None]]] = {
    "squared for cubic": (sa_annealing, "CURVES", sa_annealing.CURVES | {"cubic": lambda u: (1 - u) ** 2}, ANNEALED),
    "rounds down": (sa_annealing, "_rounded", math.floor, ANNEALED),
    "rounds up": (sa_annealing, "_rounded", math.ceil, ANNEALED),
    "snaps down": (sa_annealing, "_snapped", down_to_a_halving, SNAPPED),
    "ignores activations": (capability, "_by_memory", without_activations, MEMORY),
    "forgets a moment of Adam": (capability, "STATE_BYTES", 12, MEMORY),
    "trained numbers cost no time": (capability, "_seconds", trained_numbers_cost_no_time, TIME),
    "links carry no overhead": (capability, "_seconds", links_without_overhead, partial(LINK, "uplink_bytes_per_s")),
    "downloads take no time": (capability, "_seconds", only_the_upload, partial(LINK, "downlink_bytes_per_s")),
    "unknown clients are free": (test_capability, "ROW", posing("capability", unknown_clients_are_free), UNKNOWN),
    "values for energies": (energy, "_energies", list, SPECTRUM),
    "budget without overhead": (budget, "round_bytes", without_overhead, BUDGET),
    "budget leaves the rest": (budget, "_raised", lambda *_: frozenset(), BUDGET),
    "budget for all clients": (test_budget, "ROW", posing("budget", whole_population_every_round), BUDGET),
    "budget spent at once": (test_budget, "ROW", posing("budget", all_at_once), BUDGET),
    "budget forgets": (test_budget, "ROW", posing("budget", nothing_spent), BUDGET),
    "averages what is missing": (smoothing, "_blend", lambda old, new, kept: kept * old + (1 - kept) * new, UNMEASURED),
    "ignores memory limits": (together, "_smallest", no_memory_limits, LIMITED),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_fault_turns_a_test_red(fault, monkeypatch):
    place, name, mutant, catcher = MUTANTS[fault]
    catcher()
    monkeypatch.setattr(place, name, mutant)
    with pytest.raises(AssertionError):
        catcher()
