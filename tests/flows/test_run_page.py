"""What a run's pages say, as text."""

import logging

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.run_page import RunPage, curve, diagnostics_page, result_page, round_table, show_diagnostics
from tasks.rounds.keys import GLOBAL
from tasks.rounds.records import Acceptance, Collection, GlobalModel, Refusal, RoundRecord
from tasks.rounds.steps import Candidate, Group, Judged
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
    models={"global": 1},
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
    made = changes.pop("made", index)
    refusals = tuple(
        Refusal(client_id=c, round_index=index, attempt=1, reason=reason, detail="") for c, reason in refused
    )
    collection = Collection(
        accepted=tuple(map(acceptance, accepted)), refused=refusals, missing=tuple(missing), ledger=()
    )
    fields = {
        "metrics": {"accuracy": 0.5},
        "totals": {"uplink_bytes": 1000 * index, "downlink_bytes": 2000 * index},
        "ranks": {},
        **changes,
    }
    models = {"global": GlobalModel(sha256=DIGEST, round_index=made, version=made)}
    return RoundRecord(
        run_id="digits-1", round_index=index, outcome=outcome, models=models, collection=collection, **fields
    )


RECORDS = [
    record(0, "initial", metrics={}, totals={}),
    record(1, "committed", accepted=["c00", "c01"]),
    record(2, "failed", refused=[("c00", "non-finite")], missing=["c01"], metrics={}, made=1),
]


def judged(model, clients, *, figures=None, metrics=None, notes=None, version=1):
    group = Group(model, GLOBAL, tuple(map(acceptance, clients)))
    adapter = GlobalModel(sha256=DIGEST, round_index=1)
    weights = dict.fromkeys(clients, 1 / len(clients))
    return Judged(Candidate(group, adapter, weights, 0.25, figures or {}, notes or {}), metrics or {}, version)


CLUSTERS = [
    judged(
        "cluster-1",
        ["c00", "c01"],
        figures={"aggregation_error": 0.012345, "energy": 1e-7},
        metrics={"loss": 1.5, "accuracy_at_rank_002": 0.25, "accuracy_at_rank_016": 0.5, "accuracy": 0.75},
        notes={"c01": "clipped to 2 median norms", "c00": "counts for 0.1 of its weight"},
        version=3,
    ),
    judged("cluster-2", ["c02"], metrics={"loss": 0.5}, version=4),
]


def sections_of(page):
    """Cut a page at its headings: heading -> (rows of the table below its head, lines that are no table)."""
    parts = [part.splitlines() for part in page.replace("\n# ", "\n## ").split("\n## ")]
    return {
        heading: (
            [tuple(cells(line)) for line in lines if line.startswith("|")][2:],
            [line for line in lines if line and not line.startswith("|")],
        )
        for heading, *lines in parts
    }


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


def test_diagnostics_page_has_a_section_a_model_with_its_figures_ladder_and_notes():
    title, *models = sections_of(diagnostics_page(RECORDS[1], CLUSTERS, "accuracy")).items()
    assert title == ("# digits-1, round 1", ([], ["Moved so far: 1,000 bytes up, 2,000 bytes down."]))
    assert dict(models) == {
        "cluster-1, version 3, 2 clients": (
            [
                ("aggregation s", "0.25"),
                ("aggregation error", "0.01235"),
                ("energy", "1e-07"),
                ("accuracy at rank 2", "0.2500"),
                ("accuracy at rank 16", "0.5000"),
                ("accuracy, whole", "0.7500"),
            ],
            ["c00, c01", "- c00: counts for 0.1 of its weight", "- c01: clipped to 2 median norms"],
        ),
        "cluster-2, version 4, 1 clients": ([("aggregation s", "0.25")], ["c02"]),
    }


def test_diagnostics_page_shows_the_metric_that_the_run_is_judged_by():
    page = sections_of(diagnostics_page(RECORDS[1], CLUSTERS, "loss"))
    assert [rows[-1] for rows, _ in list(page.values())[1:]] == [("loss, whole", "1.5000"), ("loss, whole", "0.5000")]
    assert "accuracy" not in diagnostics_page(RECORDS[1], CLUSTERS, "loss")


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend")
def test_a_run_leaves_its_progress_its_pages_and_a_log_line_that_names_who_was_missing(caplog):
    @flow
    def run():
        page = RunPage(RunHandle("digits-1", "store", "mlflow", "digits"), 2, "accuracy")
        page.show_round(RECORDS[1], 1)
        page.show_round(RECORDS[2], 1)
        show_diagnostics(RECORDS[1], CLUSTERS, "accuracy")
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
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="%digits-1%")))
    assert {a.key: a.type for a in found} == {
        "progress-digits-1": "progress",
        "round-digits-1-001": "markdown",
        "result-digits-1": "markdown",
    }
    assert [a.data for a in found if a.key == "round-digits-1-001"] == [
        diagnostics_page(RECORDS[1], CLUSTERS, "accuracy")
    ]
    assert [a.data for a in found if a.type == "progress"] == [50.0]
