"""The bill of a run as a person reads it, while it runs and when it has ended."""

import csv
import json

import pytest
from msgspec.structs import replace

from flows.ledger import show_ledger
from infra.booking import booked
from infra.run_store import commit_record
from tasks.errors import ConfigError, RunNotFoundError
from tasks.rounds import keys
from tasks.rounds.records import FusionReport, RunSpec, encode
from tests.flows.closing import closed
from tests.flows.staged import CLIENTS, RUN_ID, Staged, stage_round
from tests.flows.terminal import call


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Staged:
    """One closed round of five clients, and one client's answer to the round after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWEAVE_HOME", str(tmp_path_factory.mktemp("home")))
        staged = stage_round(tmp_path_factory.mktemp("bill") / "store")
        spec = RunSpec(
            run_id=RUN_ID,
            config=staged.bench.frozen_config(),
            base_digest=staged.bench.base.digest,
            code_version="0",
            created_at="2026-01-01T00:00:00Z",
        )
        commit_record(staged.store, keys.run_spec(RUN_ID), spec)
        staged.train(*CLIENTS)
        following = closed(staged, patch)
        following.train("c02")
    return following


@pytest.fixture
def running(template, tmp_path, monkeypatch) -> Staged:
    staged = template.copy(tmp_path / "store")
    monkeypatch.setenv("RANKWEAVE_STORE", staged.url)
    return staged


def lines_of(staged: Staged):
    return [*staged.initial.collection.ledger, *booked(staged.store, staged.plan)]


def moved(staged: Staged, direction: str) -> int:
    return sum(line.num_bytes for line in lines_of(staged) if line.direction == direction)


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("round", [1, 2]),
        ("client", CLIENTS),
        ("kind", ["manifest", "plan", "share", "update"]),
    ],
)
def test_every_view_adds_up_to_what_moved_the_round_under_way_included(running, by, rows):
    bill = show_ledger(RUN_ID, by=by)
    assert [row[by] for row in bill["rows"]] == rows
    for direction in ("uplink", "downlink"):
        name = f"{direction}_bytes"
        assert bill[name] == sum(row[name] for row in bill["rows"]) == moved(running, direction)
    assert all(str(row) in bill["text"] for row in rows)


def test_rows_count_attempts(running):
    assert [row["attempts"] for row in show_ledger(RUN_ID)["rows"]] == [5, 1]
    by_client = {row["client"]: row["attempts"] for row in show_ledger(RUN_ID, by="client")["rows"]}
    assert by_client == {**dict.fromkeys(CLIENTS, 1), "c02": 2}


def test_savings_are_those_of_closed_rounds_and_the_rest_is_told(running):
    bill, totals = show_ledger(RUN_ID), running.initial.totals
    spent = totals["uplink_bytes"] + totals["downlink_bytes"]
    assert bill["otherwise_bytes"]["max_rank"] == totals["max_rank_bytes"] > 0
    assert bill["saved_frac"]["max_rank"] == pytest.approx(1 - spent / totals["max_rank_bytes"], abs=1e-4)
    assert bill["beyond_closed_rounds_bytes"] == sum(line.num_bytes for line in booked(running.store, running.plan))
    assert "moved outside closed rounds" in bill["text"]


def test_lines_that_do_not_say_for_which_round_they_are_are_not_booked_again(running):
    """Records of before lines said so."""
    bill, record = show_ledger(RUN_ID), running.initial
    lines = tuple(replace(line, round_index=0) for line in record.collection.ledger)
    collection = replace(record.collection, ledger=lines)
    keys_of_first = keys.RoundKeys(RUN_ID, 1)
    running.store.put(keys_of_first.record, encode(replace(record, collection=collection)))
    running.store.put(keys_of_first.collection, encode(collection))
    assert show_ledger(RUN_ID) == bill
    assert {line.round_index for line in running.look().close().ledger} == {2}


def test_what_clients_moved_to_fuse_is_on_the_bill(running):
    before = show_ledger(RUN_ID)
    report = FusionReport(
        run_id=RUN_ID,
        client_id="c03",
        form="cat",
        personal_weight=0.5,
        shared_weight=0.5,
        evaluations=1,
        metrics={},
        downloaded={"adapter": 7000},
    )
    running.store.put(keys.fusion(RUN_ID, "c03"), encode(report))
    after = show_ledger(RUN_ID)
    assert after["downlink_bytes"] == before["downlink_bytes"] + 7000
    assert after["uplink_bytes"] == before["uplink_bytes"] + len(encode(report))


def test_the_file_holds_every_line(running, tmp_path):
    path = tmp_path / "bill.csv"
    show_ledger(RUN_ID, csv_file=str(path))
    with path.open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines_of(running))
    assert {row["round_index"] for row in rows} == {"1", "2"}
    assert sum(int(row["num_bytes"]) for row in rows) == moved(running, "uplink") + moved(running, "downlink")


def test_a_run_that_has_planned_nothing_yet_has_an_empty_bill(running):
    for found in running.store.list(f"runs/{RUN_ID}/rounds/"):
        running.store.delete(found.key)
    bill = show_ledger(RUN_ID)
    assert (bill["rows"], bill["uplink_bytes"], bill["rounds_closed"]) == ([], 0, 0)


def test_what_cannot_be_shown_or_written_is_named(running, tmp_path):
    with pytest.raises(RunNotFoundError, match="run 'nobody-1'"):
        show_ledger("nobody-1")
    with pytest.raises(ConfigError, match=r"bill\.csv: cannot be written: No such file or directory"):
        show_ledger(RUN_ID, csv_file=str(tmp_path / "nowhere" / "bill.csv"))


def test_the_command_prints_a_table_or_one_object_and_draws(running, monkeypatch, capsys, tmp_path):
    plot = tmp_path / "bill.png"
    code, out, _ = call(monkeypatch, capsys, "ledger", RUN_ID, "--by", "kind", "--plot", plot)
    assert (code, "update" in out, "full fine tuning" in out) == (0, True, True)
    assert plot.read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(monkeypatch, capsys, "ledger", RUN_ID, "--json")
    assert code == 0
    assert json.loads(out)["uplink_bytes"] == moved(running, "uplink")
    assert call(monkeypatch, capsys, "ledger", RUN_ID, "--by", "moon")[0] == 2
