"""The bill of bytes adds up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import (
    Direction,
    LedgerLine,
    adapter_parameters,
    exceeding,
    kind_of,
    moved_bytes,
    round_totals,
    saved_fraction,
)


def line(direction, what, num_bytes, client="c00"):
    return LedgerLine(client_id=client, attempt=1, direction=direction, what=what, num_bytes=num_bytes)


def test_adapter_parameters_are_rank_times_both_sides_plus_dense():
    shapes = {"fc1": (200, 64), "fc2": (10, 200)}
    assert adapter_parameters(shapes, {"fc1": 3, "fc2": 2}, 210) == 3 * 264 + 2 * 210 + 210


def test_totals_are_what_moved_and_what_would_have_moved():
    lines = [
        line("downlink", "plan", 50),
        line("downlink", "share", 400),
        line("uplink", "update", 440),
        line("uplink", "manifest", 60),
    ]
    totals = round_totals({}, lines, full_parameters=1000, max_rank_parameters=200, own_rank_parameters={"c00": 100})
    assert totals == {
        "uplink_bytes": 500,
        "downlink_bytes": 450,
        "full_fine_tuning_bytes": 2 * 4000,
        "max_rank_bytes": 2 * 800,
        "no_codec_bytes": 2 * 400,
    }
    assert saved_fraction(totals, "full_fine_tuning") == pytest.approx(1 - 950 / 8000)
    assert saved_fraction(totals, "no_codec") == pytest.approx(1 - 950 / 800), "an envelope costs: never hidden"


def test_totals_accumulate_over_rounds():
    once = round_totals(
        {}, [line("uplink", "update", 10)], full_parameters=5, max_rank_parameters=5, own_rank_parameters={"c00": 5}
    )
    twice = round_totals(
        once, [line("uplink", "update", 10)], full_parameters=5, max_rank_parameters=5, own_rank_parameters={"c00": 5}
    )
    assert twice == {name: 2 * value for name, value in once.items()}


def test_nothing_moved_saves_nothing():
    assert saved_fraction({}, "max_rank") == 0.0


def booked(what, num_bytes, *, round_index=1, direction: Direction = "uplink", client="c00"):
    return LedgerLine(
        client_id=client, attempt=1, direction=direction, what=what, num_bytes=num_bytes, round_index=round_index
    )


LINES = st.lists(
    st.builds(
        booked,
        st.sampled_from(["update", "share"]),
        st.integers(0, 9),
        round_index=st.integers(1, 2),
        client=st.sampled_from(["c00", "c01"]),
    ),
    max_size=12,
)


def sums(lines):
    found = Counter()
    for one in lines:
        found[one.round_index, one.client_id, one.what] += one.num_bytes
    return {key: count for key, count in found.items() if count}


@given(LINES, LINES)
def test_what_exceeds_an_earlier_look_and_that_look_make_up_the_larger_of_both(now, before):
    new, old, whole = sums(exceeding(now, before)), sums(before), sums(now)
    assert new == {key: count - old.get(key, 0) for key, count in whole.items() if count > old.get(key, 0)}


def test_the_same_object_of_another_round_is_another_object():
    before = [booked("update", 10, round_index=1)]
    assert exceeding([booked("update", 10, round_index=2)], before) == [booked("update", 10, round_index=2)]
    assert exceeding([booked("update", 10, round_index=1)], before) == []


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (keys.run_spec("r"), "run"),
        (keys.fusion("r", "c00"), "fusion"),
        (RoundKeys("r", 1).plan, "plan"),
        (RoundKeys("r", 1).record, "record"),
        (RoundKeys("r", 1).share(4), "share"),
        (RoundKeys("r", 1).step(4), "share"),
        (RoundKeys("r", 1).adapter("adapter_model.safetensors"), "adapter"),
        (RoundKeys("r", 1).adapter(keys.MERGE), "merge"),
        (RoundKeys("r", 1).uplink("c00", 1, keys.UPDATE), "update"),
        (RoundKeys("r", 1).uplink("c00", 1, keys.MANIFEST), "manifest"),
        (RoundKeys("r", 1).uplink("c00", 1, keys.FAILURE), "failure"),
        (RoundKeys("r", 1).uplink("c00", 1, "holiday.jpg"), "other"),
    ],
)
def test_every_key_has_a_kind(key, kind):
    assert kind_of(key) == kind


def test_what_was_not_needed_still_counts_for_what_would_have_moved_otherwise():
    lines = [booked("update", 0), booked("share", 0, direction="downlink")]
    totals = round_totals({}, lines, full_parameters=10, max_rank_parameters=5, own_rank_parameters={"c00": 2})
    assert (moved_bytes(totals), totals["full_fine_tuning_bytes"], totals["no_codec_bytes"]) == (0, 80, 16)


def test_an_update_that_a_client_reads_again_moves_no_second_payload_otherwise():
    lines = [booked("update", 7), booked("update", 7, direction="downlink")]
    totals = round_totals({}, lines, full_parameters=10, max_rank_parameters=5, own_rank_parameters={"c00": 2})
    assert (moved_bytes(totals), totals["full_fine_tuning_bytes"]) == (14, 40)
