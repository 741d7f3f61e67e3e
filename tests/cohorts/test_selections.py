"""Selections: laws that every row keeps, chances counted against the formulas, and choices worked by hand."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tasks.cohorts.sampling import sample_cohort
from tasks.cohorts.selections.knowledge import ClientKnowledge, Draw
from tasks.cohorts.selections.table import SELECTIONS, selection
from tasks.errors import ConfigError, InvalidWeightError, UnknownNameError
from tests.oracles.selections import inclusion, norm_chances

CLIENTS = [f"c{i:02d}" for i in range(12)]
KNOWN = ClientKnowledge(update_norm=1.0, loss=1.0, num_examples=10, last_round=1)
DRAWS = st.builds(Draw, st.integers(0, 2**31), st.integers(1, 500))
KNOWLEDGE = st.dictionaries(
    st.sampled_from([*CLIENTS, "gone"]),
    st.builds(
        ClientKnowledge,
        update_norm=st.none() | st.floats(0, 1e300),
        loss=st.none() | st.floats(-1e3, 1e3),
        num_examples=st.integers(1, 10**9),
        last_round=st.integers(1, 9),
    ),
)
FOLLOWING = [name for name, row in SELECTIONS.items() if row.follows_clients]
MEASURE = {"by_norm": "update_norm", "by_loss": "loss"}


def known_as(name: str, values: dict[str, float]) -> dict[str, ClientKnowledge]:
    """Return clients that showed these norms or losses, and are alike but for that."""
    return {client: replace(KNOWN, **{MEASURE[name]: value}) for client, value in values.items()}


def counts(name: str, knowledge, size: int, rounds: int = 3000, **values) -> Counter:
    """Count how often each client is invited."""
    row = selection(name)
    cohorts = (
        row.cohort(sorted(knowledge), knowledge, size=size, draw=Draw(7, t), values=values) for t in range(rounds)
    )
    return Counter(client for cohort in cohorts for client in cohort)


def assert_shares(counted: Counter, expected: dict[str, float], rounds: int = 3000) -> None:
    """Hold counts to chances within five standard deviations."""
    for client, chance in expected.items():
        spread = 5 * math.sqrt(chance * (1 - chance) / rounds) + 1e-12
        assert counted[client] / rounds == pytest.approx(chance, abs=spread)


@pytest.mark.parametrize("name", SELECTIONS)
@given(st.permutations(CLIENTS), KNOWLEDGE, st.integers(0, 15), DRAWS)
def test_a_cohort_has_its_size_is_sorted_and_does_not_depend_on_the_order_of_clients(name, clients, known, size, draw):
    row = selection(name)
    cohort = row.cohort(clients, known, size=size, draw=draw)
    reordered = dict(reversed(known.items()))
    assert cohort == row.cohort(CLIENTS, reordered, size=size, draw=draw) == tuple(sorted(set(cohort)))
    assert set(cohort) <= set(CLIENTS)
    assert len(cohort) == (min(size, 12) if size else 12)


@pytest.mark.parametrize("name", FOLLOWING)
@given(KNOWLEDGE, st.integers(1, 12), DRAWS)
def test_clients_nobody_knows_come_first(name, known, size, draw):
    unknown = {c for c in CLIENTS if c not in known or getattr(known[c], MEASURE[name]) is None}
    cohort = set(selection(name).cohort(CLIENTS, known, size=size, draw=draw))
    assert cohort <= unknown or unknown <= cohort


@pytest.mark.parametrize("name", SELECTIONS)
def test_rounds_and_seeds_draw_different_cohorts(name):
    known = dict.fromkeys(CLIENTS, KNOWN)
    cohorts = {selection(name).cohort(CLIENTS, known, size=4, draw=Draw(s, t)) for s in range(4) for t in range(5)}
    assert len(cohorts) > 15


@given(KNOWLEDGE, st.integers(0, 15), DRAWS)
def test_uniform_is_the_sampling_of_today(known, size, draw):
    expected = sample_cohort(CLIENTS, cohort_size=size, overshoot=0, round_index=draw.round_index, seed=draw.seed)
    assert selection("uniform").cohort(CLIENTS, known, size=size, draw=draw) == expected


@pytest.mark.parametrize("floor", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 2])
def test_by_norm_draws_each_place_in_proportion_to_the_norms(floor, size):
    norms = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 0.0}
    counted = counts("by_norm", known_as("by_norm", norms), size, floor=floor)
    assert_shares(counted, inclusion(norm_chances(norms, floor), size))


def test_by_norm_draws_uniformly_where_norms_are_alike_or_all_zero():
    for norm in (0.0, 3.0):
        known = known_as("by_norm", dict.fromkeys("abcd", norm))
        assert_shares(counts("by_norm", known, 2), dict.fromkeys("abcd", 0.5))


@given(st.lists(st.floats(0.1, 10), min_size=12, max_size=12), st.sampled_from((0.25, 1024.0, 2.0**1000)), DRAWS)
def test_the_scale_of_norms_does_not_matter(norms, scale, draw):
    cohorts = [
        selection("by_norm").cohort(
            CLIENTS,
            known_as("by_norm", {c: n * s for c, n in zip(CLIENTS, norms, strict=True)}),
            size=5,
            draw=draw,
        )
        for s in (1.0, scale)
    ]
    assert cohorts[0] == cohorts[1]


@pytest.mark.parametrize("name", FOLLOWING)
def test_nobody_starves(name):
    # One client that is behind all others in every respect: half of its chance of an open place, over many rounds.
    values = {"a": 0.0, "b": 1e9, "c": 1e9, "d": 1e9}
    floor = 0.2
    counted = counts(name, known_as(name, values), 1, floor=floor, **({"candidates": 4} if name == "by_loss" else {}))
    assert counted["a"] / 3000 == pytest.approx(floor / 4, abs=5 * math.sqrt(0.05 * 0.95 / 3000))


def test_by_loss_among_all_candidates_takes_the_highest_losses():
    known = known_as("by_loss", {c: float(i) for i, c in enumerate(CLIENTS)})
    values = {"candidates": 12, "floor": 0.01}
    cohorts = Counter(
        selection("by_loss").cohort(CLIENTS, known, size=3, draw=Draw(1, t), values=values) for t in range(200)
    )
    assert cohorts.most_common(1)[0] == (("c09", "c10", "c11"), cohorts[tuple(CLIENTS[9:])])
    assert cohorts[tuple(CLIENTS[9:])] > 150


def test_by_loss_draws_candidates_by_the_size_of_their_data():
    # One candidate a place: losses decide nothing.
    sizes = {"a": 10, "b": 20, "c": 50}
    known = {c: replace(KNOWN, num_examples=n, loss=-n) for c, n in sizes.items()}
    chances = {c: 0.99 * n / 80 + 0.01 / 3 for c, n in sizes.items()}
    assert_shares(counts("by_loss", known, 1, candidates=1, floor=0.01), chances)


def test_two_candidates_for_a_place_leave_it_to_the_worse_off():
    # Of three alike in data, each pair is drawn as often as the others; the lowest loss never wins one.
    known = known_as("by_loss", {"a": 1.0, "b": 2.0, "c": 3.0})
    expected = {"a": 0.01 / 3, "b": 0.99 / 3 + 0.01 / 3, "c": 0.99 * 2 / 3 + 0.01 / 3}
    assert_shares(counts("by_loss", known, 1, candidates=2, floor=0.01), expected)


def test_of_equal_losses_the_one_not_heard_of_for_longer_wins_then_the_lower_id():
    known = {c: replace(KNOWN, last_round=r) for c, r in {"a": 3, "b": 2, "c": 2}.items()}
    counted = counts("by_loss", known, 1, rounds=500, candidates=3, floor=0.01)
    assert counted["b"] > 480


@pytest.mark.parametrize(
    "values",
    [
        {"update_norm": math.nan},
        {"update_norm": -1.0},
        {"update_norm": math.inf},
        {"loss": math.nan},
        {"num_examples": 0},
    ],
)
def test_what_nobody_can_be_chosen_by_is_refused(values):
    with pytest.raises(InvalidWeightError, match="cohort"):
        replace(KNOWN, **values)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UnknownNameError, match="by_norm"):
        selection("by_size")
    for name, values in (("by_norm", {"floor": 0.0}), ("by_loss", {"candidates": 0.5})):
        with pytest.raises(ConfigError, match=next(iter(values))):
            selection(name).cohort(CLIENTS, {}, size=3, draw=Draw(0, 1), values=values)
