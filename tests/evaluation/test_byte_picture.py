"""The picture of the bill: the same bytes for the same run, whatever there is to draw."""

import pytest

from tasks.evaluation.byte_picture import byte_picture
from tasks.rounds.records import RoundRecord


def record(index: int, **totals: int) -> RoundRecord:
    booked = {"uplink_bytes": 0, "downlink_bytes": 0, **totals}
    metrics = {"accuracy": 0.1 + 0.2 * index}
    return RoundRecord(
        run_id="r", round_index=index, outcome="committed", models={}, ranks={}, metrics=metrics, totals=booked
    )


FIRST = record(0)
MOVED = [
    FIRST,
    *(
        record(
            t,
            uplink_bytes=t * 10**5,
            downlink_bytes=t * 10**5,
            full_fine_tuning_bytes=t * 10**7,
            max_rank_bytes=t * 10**6,
            no_codec_bytes=t * 4 * 10**5,
        )
        for t in (1, 2, 3)
    ),
]


@pytest.mark.parametrize("records", [[], [FIRST], MOVED[:2], MOVED], ids=["nothing", "round 0", "one round", "three"])
def test_there_is_a_picture_of_every_run(records):
    png = byte_picture(records, "accuracy")
    assert png.startswith(b"\x89PNG")
    assert byte_picture(records, "accuracy") == png


def test_every_mark_and_every_round_shows():
    whole = byte_picture(MOVED, "accuracy")
    assert byte_picture([*MOVED[:3]], "accuracy") != whole
    last = MOVED[-1]
    for name in ("full_fine_tuning_bytes", "max_rank_bytes", "no_codec_bytes"):
        fewer = {key: value for key, value in last.totals.items() if key != name}
        assert byte_picture([*MOVED[:3], record(3, **fewer)], "accuracy") != whole
