"""Poisson cohorts: each client by itself, at the rate asked for, and the same for the same seed."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.cohorts.poisson import poisson_cohort
from tasks.errors import ConfigError

CLIENTS = [f"c{i:03d}" for i in range(200)]
SEEDS = st.integers(0, 2**62)


@settings(derandomize=True, max_examples=25)
@given(st.permutations(CLIENTS[:30]), st.floats(0.01, 1.0), st.integers(1, 50), SEEDS)
def test_cohort_is_sorted_and_does_not_depend_on_the_order_of_clients(clients, rate, round_index, seed):
    cohort = poisson_cohort(clients, rate=rate, round_index=round_index, seed=seed)
    assert cohort == poisson_cohort(CLIENTS[:30], rate=rate, round_index=round_index, seed=seed)
    assert cohort == sorted(set(cohort))


@settings(derandomize=True, max_examples=25)
@given(st.sets(st.sampled_from(CLIENTS), min_size=1), st.floats(0.01, 1.0), SEEDS)
def test_a_client_is_invited_whoever_else_there_is(present, rate, seed):
    everyone = poisson_cohort(CLIENTS, rate=rate, round_index=3, seed=seed)
    cohort = poisson_cohort(sorted(present), rate=rate, round_index=3, seed=seed)
    assert cohort == [client for client in everyone if client in present]


@settings(derandomize=True, max_examples=25)
@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0), SEEDS)
def test_a_higher_rate_leaves_nobody_out(one, other, seed):
    few, many = (poisson_cohort(CLIENTS, rate=rate, round_index=1, seed=seed) for rate in sorted((one, other)))
    assert set(few) <= set(many)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_clients_come_at_the_rate_and_rounds_and_seeds_are_independent(rate):
    cohorts = [set(poisson_cohort(CLIENTS, rate=rate, round_index=t, seed=s)) for t in range(1, 26) for s in range(4)]
    draws = len(cohorts) * len(CLIENTS)
    spread = 4 * math.sqrt(rate * (1 - rate) / draws)
    assert sum(map(len, cohorts)) / draws == pytest.approx(rate, abs=spread)
    # Two independent rounds share a client with probability rate squared.
    pairs = [len(a & b) for a, b in pairwise(cohorts)]
    assert sum(pairs) / (len(pairs) * len(CLIENTS)) == pytest.approx(rate**2, abs=6 * math.sqrt(rate**2 / draws))


def test_sizes_vary_as_a_binomial_and_may_be_zero():
    sizes = [len(poisson_cohort(CLIENTS[:20], rate=0.1, round_index=t, seed=5)) for t in range(1, 401)]
    mean = sum(sizes) / len(sizes)
    variance = sum((size - mean) ** 2 for size in sizes) / len(sizes)
    assert variance == pytest.approx(20 * 0.1 * 0.9, rel=0.3)
    assert 0 in sizes


def test_rate_one_invites_everyone():
    assert poisson_cohort(CLIENTS, rate=1.0, round_index=1, seed=0) == CLIENTS


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(rate):
    with pytest.raises(ConfigError, match="sampling rate"):
        poisson_cohort(CLIENTS, rate=rate, round_index=1, seed=0)
