"""Surrogates: substitution by weights, who is near enough, and what is remembered of distances."""

import math
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.products import adapter_distance
from tasks.aggregators.distance_memory import DistanceMemory, Meeting, observe, round_distances
from tasks.aggregators.surrogates import SURROGATE_OPTIONS, SurrogateRule, surrogate_weights
from tasks.errors import ConfigError, EmptyCohortError, InvalidWeightError, NonFiniteUpdateError, RecordFormatError
from tasks.options import chosen
from tests.aggregators.robust.cases import neighbours
from tests.oracles.surrogates import mean_with_copies, smoothed

CLIENTS = [f"c{i}" for i in range(8)]
FREE = SurrogateRule(max_share=1.0, epsilon=100.0)
WEIGHTS = st.lists(st.floats(0.5, 100.0), min_size=8, max_size=8)
PLACES = st.lists(st.floats(-10.0, 10.0), min_size=8, max_size=8)
AWAY = st.sets(st.sampled_from(CLIENTS), max_size=7)


def line(places: dict[str, float], count: int = 3) -> DistanceMemory:
    """Return what is known of clients that sit on a line."""
    pairs = [(u, v) for u in places for v in places if u < v]
    return DistanceMemory({(u, v): Meeting(abs(places[u] - places[v]), count) for u, v in pairs})


def split(weights, away) -> tuple[dict[str, float], dict[str, float]]:
    everyone = dict(zip(CLIENTS, weights, strict=True))
    return {c: w for c, w in everyone.items() if c not in away}, {c: w for c, w in everyone.items() if c in away}


def away_for(age: int, missing) -> dict[str, int]:
    return dict(zip(missing, [age] * len(missing), strict=True))


@given(WEIGHTS, PLACES, AWAY, st.integers(1, 5))
def test_weights_average_as_copies_of_the_surrogates_would(weights, places, away, age):
    received, missing = split(weights, away)
    positions = dict(zip(CLIENTS, places, strict=True))
    done = surrogate_weights(received, missing, line(positions), ages=away_for(age, missing), rule=FREE)
    updates = {c: math.sin(i) for i, c in enumerate(CLIENTS) if c in received}
    mean = sum(done.weights[c] * updates[c] for c in received) / sum(done.weights.values())
    faded = {u: w * 0.9**age for u, w in missing.items()}
    assert mean == pytest.approx(mean_with_copies(updates, received, done.notes, faded), rel=1e-9, abs=1e-9)
    assert sum(done.weights.values()) == pytest.approx(sum(received.values()))
    for u, v in done.notes.items():
        nearest = min(received, key=lambda r: (abs(positions[u] - positions[r]), r))
        assert v in ("", nearest)


@given(WEIGHTS, PLACES)
def test_with_nobody_missing_weights_keep_their_bits(weights, places):
    received, _ = split(weights, ())
    done = surrogate_weights(received, {}, line(dict(zip(CLIENTS, places, strict=True))), ages={})
    assert (done.weights, done.notes, done.covered) == (received, {}, 1.0)


@given(WEIGHTS, AWAY.filter(bool))
def test_of_identical_clients_the_lowest_id_stands_in_for_all(weights, away):
    received, missing = split(weights, away)
    memory = line(dict.fromkeys(CLIENTS, 1.0))
    done = surrogate_weights(received, missing, memory, ages=dict.fromkeys(missing, 1))
    assert set(done.notes.values()) == {min(received)}
    assert done.covered == 1.0


def test_the_worked_numbers():
    # c2 missed two rounds: 4 * 0.81 of its weight goes to c1, its nearest; then all is scaled back to 5.
    memory = line({"c0": 0.0, "c1": 9.0, "c2": 10.0})
    done = surrogate_weights(
        {"c0": 2.0, "c1": 3.0}, {"c2": 4.0}, memory, ages={"c2": 2}, rule=SurrogateRule(max_share=1)
    )
    assert done.weights == pytest.approx({"c0": 2 * 5 / 8.24, "c1": 6.24 * 5 / 8.24})
    assert (done.notes, done.covered) == ({"c2": "c1"}, 1.0)


@given(WEIGHTS, PLACES, AWAY, st.permutations(CLIENTS), st.permutations(CLIENTS))
def test_the_order_of_clients_is_irrelevant_and_names_are_nothing_but_names(weights, places, away, order, names):
    received, missing = split(weights, away)
    memory, ages = line(dict(zip(CLIENTS, places, strict=True))), dict.fromkeys(missing, 1)
    done = surrogate_weights(received, missing, memory, ages=ages)
    reordered = surrogate_weights(
        {c: received[c] for c in order if c in received},
        {c: missing[c] for c in order if c in missing},
        memory,
        ages=ages,
    )
    assert done == reordered
    called = dict(zip(CLIENTS, names, strict=True))
    renamed = surrogate_weights(
        {called[c]: w for c, w in received.items()},
        {called[c]: w for c, w in missing.items()},
        line({called[c]: x for c, x in zip(CLIENTS, places, strict=True)}),
        ages={called[c]: 1 for c in missing},
    )
    if len(set(places)) == len(places) == len({abs(x - y) for x in places for y in places if x < y}):  # no ties
        assert renamed.notes == {called[u]: called.get(v, "") for u, v in done.notes.items()}
    assert sum(renamed.weights.values()) == pytest.approx(sum(done.weights.values()))


@pytest.mark.parametrize("size", [4, 2])
def test_a_cluster_that_is_missing_whole_is_not_replaced_by_the_other(size):
    inside = {f"x{i}": 0.1 * i for i in range(4)}
    outside = {f"y{i}": 100 + 0.1 * i for i in range(size)}
    received, missing = dict.fromkeys(inside, 2.0), dict.fromkeys(outside, 5.0)
    done = surrogate_weights(received, missing, line(inside | outside), ages=dict.fromkeys(missing, 1))
    assert (done.weights, set(done.notes.values()), done.covered) == (received, {""}, 0.0)


def test_who_never_met_anyone_often_enough_is_left_out():
    received, missing = {"c0": 1.0}, {"c1": 1.0}
    for memory, ages in (
        (line({"c0": 0.0, "c1": 0.0}, count=2), {"c1": 1}),  # met too rarely
        (DistanceMemory(), {"c1": 1}),  # never met
        (line({"c0": 0.0, "c1": 0.0}), {}),  # never heard of
    ):
        done = surrogate_weights(received, missing, memory, ages=ages)
        assert (done.weights, done.notes, done.covered) == (received, {"c1": ""}, 0.0)
    assert surrogate_weights(received, missing, line({"c0": 0.0, "c1": 0.0}), ages={"c1": 1}).covered == 1.0


def test_half_covered_is_half():
    memory = line({"c0": 0.0, "c1": 0.1, "c2": 50.0})
    done = surrogate_weights({"c0": 1.0}, {"c1": 1.0, "c2": 1.0}, memory, ages={"c1": 1, "c2": 1})
    assert (done.notes, done.covered) == ({"c1": "c0", "c2": ""}, 0.5)


@given(WEIGHTS, PLACES, AWAY, st.floats(0.0, 1.0))
def test_standing_in_lifts_nobody_above_the_cap_and_takes_from_nobody_else_more_than_it_gives(
    weights, places, away, cap
):
    received, missing = split(weights, away)
    rule = SurrogateRule(max_share=cap, epsilon=100.0)
    memory = line(dict(zip(CLIENTS, places, strict=True)))
    done = surrogate_weights(received, missing, memory, ages=dict.fromkeys(missing, 1), rule=rule)
    total = sum(received.values())
    assert sum(done.weights.values()) == pytest.approx(total)
    for client, weight in done.weights.items():
        assert weight <= max(cap * total, received[client]) * (1 + 1e-12)
        if client not in done.notes.values():
            assert weight <= received[client] * (1 + 1e-12)


def test_a_cap_hands_the_rest_to_the_others():
    memory = line({"c0": 0.0, "c1": 40.0, "c2": 80.0, "c3": 0.0})
    done = surrogate_weights(
        {"c0": 1.0, "c1": 1.0, "c2": 2.0}, {"c3": 1000.0}, memory, ages={"c3": 1}, rule=SurrogateRule(max_share=0.5)
    )
    assert done.weights == pytest.approx({"c0": 2.0, "c1": 2 / 3, "c2": 4 / 3})


def test_one_client_received_counts_whole():
    done = surrogate_weights({"c0": 3.0}, {"c1": 9.0}, line({"c0": 0.0, "c1": 0.0}), ages={"c1": 1})
    assert (done.weights, done.notes) == ({"c0": 3.0}, {"c1": "c0"})


def test_nobody_received_is_a_failed_round():
    with pytest.raises(EmptyCohortError, match="nobody was received"):
        surrogate_weights({}, {"c1": 1.0}, DistanceMemory(), ages={})


@pytest.mark.parametrize(
    ("received", "missing", "ages", "error"),
    [
        ({"c0": 0.0}, {}, {}, InvalidWeightError),
        ({"c0": math.nan}, {}, {}, InvalidWeightError),
        ({"c0": 1.0}, {"c1": -1.0}, {}, InvalidWeightError),
        ({"c0": 1.0}, {"c0": 1.0}, {}, ConfigError),
        ({"c0": 1.0}, {"c1": 1.0}, {"c1": 0}, ConfigError),
    ],
)
def test_what_makes_no_sense_is_refused(received, missing, ages, error):
    with pytest.raises(error):
        surrogate_weights(received, missing, DistanceMemory(), ages=ages)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_distances_are_smoothed_over_the_rounds_in_which_two_met(distances, kappa):
    memory = DistanceMemory({("a", "z"): Meeting(5.0, 2)})
    for i, distance in enumerate(distances):
        memory = observe(memory, {("b", "a") if i % 2 else ("a", "b"): distance}, kappa=kappa)
    meeting = memory.meetings["a", "b"]
    assert meeting.distance == pytest.approx(smoothed(distances, kappa))
    assert meeting.count == len(distances)
    assert memory.meetings["a", "z"] == Meeting(5.0, 2)


@pytest.mark.parametrize(
    ("distances", "error"),
    [
        ({("a", "b"): math.nan}, NonFiniteUpdateError),
        ({("a", "b"): -1.0}, ConfigError),
        ({("a", "a"): 0.0}, ConfigError),
        ({("a", "b"): 1.0, ("b", "a"): 1.0}, ConfigError),
    ],
)
def test_what_is_no_distance_is_refused(distances, error):
    memory = DistanceMemory()
    with pytest.raises(error, match="distance of"):
        observe(memory, distances)
    assert memory.meetings == {}


@settings(max_examples=20)
@given(PLACES)
def test_a_record_gives_the_memory_back(places):
    memory = line(dict(zip(CLIENTS, places, strict=True)))
    assert DistanceMemory.from_rows(reversed(memory.to_rows())) == memory


@pytest.mark.parametrize(
    "rows",
    [
        [("a", "b", 1.0, 1), ("a", "b", 1.0, 1)],
        [("b", "a", 1.0, 1)],
        [("a", "a", 0.0, 1)],
        [("a", "b", -1.0, 1)],
        [("a", "b", math.inf, 1)],
        [("a", "b", 1.0, 0)],
    ],
)
def test_a_garbled_record_is_refused(rows):
    with pytest.raises(RecordFormatError, match="distance of"):
        DistanceMemory.from_rows(rows)


def test_a_rounds_distances_are_those_of_products_in_any_order_of_arrival():
    updates = dict(zip("cab", neighbours(3), strict=True))
    found = round_distances(updates)
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found == round_distances(dict(sorted(updates.items())))
    assert round_distances({}) == round_distances({"a": updates["a"]}) == {}
    without_heads = {client: type(update)(update.pairs) for client, update in updates.items()}
    for (u, v), distance in round_distances(without_heads).items():
        assert distance == pytest.approx(adapter_distance(updates[u], updates[v]))


def test_the_options_are_the_rules_fields_with_their_defaults():
    assert chosen("surrogates", SURROGATE_OPTIONS, {}) == asdict(SurrogateRule())
