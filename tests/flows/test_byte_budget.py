"""A budget of bytes ends a run before the round that would exceed it, with what it has."""

import json

import mlflow
import msgspec
import pytest

from configs.byte_desk import ByteDesk, expected_bytes
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import read_records
from infra.settings import read_settings
from tasks.rounds.ledger import COUNTERFACTUALS, LedgerLine
from tasks.rounds.records import Collection, RoundRecord
from tasks.rounds.summary import RunSummary
from tests.flows.small import small_config
from tests.flows.staged import bench_of
from tests.flows.terminal import call


def record_of(last: int, total: int, *, round_index: int = 4, outcome: str = "committed") -> RoundRecord:
    line = LedgerLine(client_id="c00", attempt=1, direction="downlink", what="share", num_bytes=last)
    record = RoundRecord(
        run_id="r",
        round_index=round_index,
        outcome="committed",
        models={},
        ranks={},
        collection=Collection(accepted=(), refused=(), missing=(), ledger=(line,)),
        totals={"uplink_bytes": total - total // 3, "downlink_bytes": total // 3},
    )
    return msgspec.structs.replace(record, outcome=outcome)


@pytest.mark.parametrize(
    ("last", "total", "allowed"),
    [
        (1_000_000, 4_000_000, True),
        (1_000_001, 4_000_000, False),
        (500_000, 4_500_000, True),
        (0, 4_999_999, True),
        (0, 5_000_000, False),
        (0, 5_000_001, False),
    ],
)
def test_a_round_starts_while_it_is_expected_to_fit_and_something_is_left(last, total, allowed):
    assert ByteDesk(bench_of("cohort.byte_budget_mb=5")).allows(record_of(last, total)) is allowed


def test_shares_that_clients_drew_are_expected_to_be_as_large_as_updates():
    record = record_of(1_000, 10_000)
    update = LedgerLine(client_id="c00", attempt=1, direction="uplink", what="update", num_bytes=700)
    plan = LedgerLine(client_id="c00", attempt=1, direction="downlink", what="plan", num_bytes=50)
    drew = msgspec.structs.replace(record.collection, ledger=(update, plan))
    assert expected_bytes(msgspec.structs.replace(record, collection=drew)) == 1_450
    downloaded = msgspec.structs.replace(record.collection, ledger=(update, plan, *record.collection.ledger))
    assert expected_bytes(msgspec.structs.replace(record, collection=downloaded)) == 1_750


def test_without_a_budget_everything_is_allowed():
    assert ByteDesk(bench_of()).allows(record_of(10**15, 10**18))


def test_the_first_round_is_always_allowed():
    first = RoundRecord(run_id="r", round_index=0, outcome="initial", models={}, ranks={})
    assert ByteDesk(bench_of("cohort.byte_budget_mb=0.001")).allows(first)
    assert expected_bytes(first) == 0


def test_after_a_failed_round_the_mean_of_all_rounds_is_expected():
    assert expected_bytes(record_of(100, 4000)) == 100
    assert expected_bytes(record_of(100, 4000, outcome="failed")) == 1000
    assert expected_bytes(record_of(3000, 4000, outcome="failed")) == 3000


def metric_by_round(summary: RunSummary, name: str) -> list[float]:
    client = mlflow.MlflowClient(read_settings().mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`rankweave.run_id` = '{summary.run_id}'")
    return [point.value for point in client.get_metric_history(run.info.run_id, name)]


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_a_run_stops_before_it_exceeds_its_budget_and_again_when_resumed():
    one = federated_training(small_config("rounds=1"))
    once = one.uplink_bytes + one.downlink_bytes
    summary = federated_training(small_config("rounds=5", f"cohort.byte_budget_mb={3.2 * once / 1e6}"))
    assert (summary.outcome, summary.rounds) == ("byte_budget", 2)
    assert summary.model_version > 0, "what it has is published"
    assert summary.uplink_bytes + summary.downlink_bytes <= 3.2 * once
    for way in ("uplink", "downlink"):
        total, rounds = metric_by_round(summary, f"{way}_bytes"), metric_by_round(summary, f"round_{way}_bytes")
        assert (total[0], total[1]) == (rounds[0], sum(rounds)), "of each round, and so far"
        assert total[1] == getattr(summary, f"{way}_bytes")
    for name in COUNTERFACTUALS:
        assert len(metric_by_round(summary, f"saved_{name}_frac")) == 2
    again = federated_training(small_config(f"resume_run={summary.run_id}"))
    assert (again.outcome, again.rounds, again.adapter_sha256) == ("byte_budget", 2, summary.adapter_sha256)
    assert len(read_records(open_store(summary.store_url), summary.run_id)) == 3


@pytest.mark.parametrize(("outcome", "code"), [("byte_budget", 3), ("privacy_budget", 0), ("committed", 0)])
@pytest.mark.parametrize("words", [("run", "digits-staircase"), ("resume", "small-1")])
def test_the_command_line_has_a_code_for_it(words, outcome, code, monkeypatch, capsys):
    for name in ("run_config", "resume_run"):
        monkeypatch.setattr(f"flows.console.{name}", lambda *_, **__: {"outcome": outcome, "text": "what came out"})
    assert call(monkeypatch, capsys, *words)[:2] == (code, "what came out\n")
    ended, out, _ = call(monkeypatch, capsys, *words, "--json")
    assert (ended, json.loads(out)["outcome"]) == (code, outcome)
