"""The bill of bytes adds up."""

import pytest

from tasks.rounds.ledger import LedgerLine, adapter_parameters, round_totals, saved_fraction


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
