"""What a run's page says, as text."""

import logging

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.run_page import RunPage, curve, result_page, round_table
from tasks.rounds.records import Acceptance, Collection, Refusal, RoundRecord
from tasks.rounds.summary import RunHandle, RunSummary

DIGEST = "0" * 64
SUMMARY = RunSummary(
    run_id="digits-1",
    outcome="committed",
    rounds=1,
    metrics={"accuracy": 0.5},
    uplink_bytes=1000,
    downlink_bytes=2000,
    saved_fraction=0.9,
    saved_fraction_max_rank=0.4,
    model_name="digits",
    model_version=1,
    adapter_sha256=DIGEST,
    tracking_url="http://mlflow/#/experiments/1/runs/2",
    store_url="store",
)


def acceptance(client):
    return Acceptance(
        client_id=client,
        attempt=1,
        rank=2,
        manifest_sha256=DIGEST,
        update_sha256=DIGEST,
        num_examples=3,
        update_norm=1.0,
        training_s=0.1,
        metrics={},
    )


def record(index, outcome, *, accepted=(), refused=(), missing=(), **changes):
    refusals = tuple(
        Refusal(client_id=c, round_index=index, attempt=1, reason=reason, detail="") for c, reason in refused
    )
    collection = Collection(
        accepted=tuple(map(acceptance, accepted)), refused=refusals, missing=tuple(missing), ledger=()
    )
    fields = {
        "global_round": index,
        "metrics": {"accuracy": 0.5},
        "totals": {"uplink_bytes": 1000 * index, "downlink_bytes": 2000 * index},
        "model_version": index,
        "ranks": {},
        **changes,
    }
    return RoundRecord(
        run_id="digits-1", round_index=index, outcome=outcome, global_sha256=DIGEST, collection=collection, **fields
    )


RECORDS = [
    record(0, "initial", metrics={}, totals={}),
    record(1, "committed", accepted=["c00", "c01"]),
    record(2, "failed", refused=[("c00", "non-finite")], missing=["c01"], metrics={}, global_round=1, model_version=1),
]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_round_table_has_one_row_a_round_and_says_none_where_a_round_made_nothing():
    head, rule, *rows = map(cells, round_table(RECORDS, "accuracy").splitlines())
    assert len(head) == len(rule) == 9
    assert rows == [
        ["1", "committed", "0.5000", "2", "0", "0", "1,000", "2,000", "1"],
        ["2", "failed", "none", "0", "1", "1", "2,000", "4,000", "none"],
    ]


def test_result_page_links_to_mlflow_and_shows_the_picture_above_the_table():
    page = result_page(SUMMARY, RECORDS, "accuracy")
    assert "[the run in MLflow](http://mlflow/#/experiments/1/runs/2)" in page
    assert page.index("](data:image/png;base64,iVBOR") < page.index("| round |")


def test_result_page_without_a_scored_round_has_no_picture():
    page = result_page(SUMMARY, [RECORDS[0], RECORDS[2]], "accuracy")
    assert "data:image" not in page
    assert "| failed |" in page


def test_curve_leaves_out_rounds_without_the_metric():
    assert (curve(RECORDS, "accuracy").moved_bytes, curve(RECORDS, "accuracy").values) == ((3000,), (0.5,))


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend")
def test_a_run_leaves_its_progress_one_result_and_a_log_line_that_names_who_was_missing(caplog):
    @flow
    def run():
        page = RunPage(RunHandle("digits-1", "store", "mlflow", "digits"), 2, "accuracy")
        page.show_round(RECORDS[1], 1)
        page.show_round(RECORDS[2], 1)
        page.show_result(SUMMARY, RECORDS)

    with caplog.at_level(logging.INFO, logger="prefect.flow_runs"):
        run()
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith("Round ")]
    assert lines == [
        ("INFO", "Round 1: committed, accuracy 0.5000; 1 of 2 done; 2 accepted"),
        (
            "WARNING",
            "Round 2: failed, no new adapter; 1 of 2 done; 0 accepted, 1 refused: c00 (non-finite), 1 missing: c01",
        ),
    ]
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="%digits-1")))
    assert {a.key: a.type for a in found} == {"progress-digits-1": "progress", "result-digits-1": "markdown"}
    assert {a.data for a in found if a.type == "progress"} == {50.0}
