"""The run as a Prefect flow: what it commits, what it adopts, how it ends without quorum."""

import json
import os
import signal
from pathlib import Path
from threading import Event

import mlflow
import numpy as np
import pandas as pd
import pytest
from peft import PeftModel

import flows.client_update
import flows.federated_round
from configs.workbench import Workbench
from flows.console import _progress_bar
from flows.federated_training import federated_training
from infra.model_registry import open_registry
from infra.object_store import open_store
from infra.run_store import list_run_ids, read_records
from infra.settings import read_settings
from tasks.errors import DataError, QuorumError, RunCancelledError
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import encode, sha256
from tests.flows.small import small_config

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_backend", "home")]


class PowerCutError(Exception):
    """Stands for a process that is gone."""


def records_of(summary):
    return read_records(open_store(summary.store_url), summary.run_id)


def test_run_commits_every_round_and_registers_what_it_committed():
    config = small_config()
    summary = federated_training(config)
    records = records_of(summary)
    assert [r.outcome for r in records] == ["initial", "committed", "committed"]
    assert (summary.outcome, summary.rounds, summary.model_version) == ("committed", 2, 2)
    assert records[2].previous_sha256 == sha256(encode(records[1])), "records are chained"
    assert records[2].ranks == {"c00": 2, "c01": 4, "c02": 8, "c03": 2, "c04": 4}

    bench = Workbench(config)
    pixels = bench.raw.test.images.reshape(len(bench.raw.test), -1)
    mlflow.set_tracking_uri(read_settings().mlflow_uri)
    answers = (
        mlflow.pyfunc.load_model("models:/small@champion").predict(pd.DataFrame(pixels))["label"].astype(int).to_numpy()
    )
    assert float(np.mean(answers == bench.raw.test.labels)) == pytest.approx(summary.metrics["accuracy"], abs=1e-6)


def test_published_adapter_is_a_peft_folder(tmp_path):
    config = small_config("rounds=1")
    summary = federated_training(config)
    store = open_store(summary.store_url)
    keys = RoundKeys(summary.run_id, 1)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes(store.get(keys.adapter(name)))
    assert sha256((tmp_path / "adapter_model.safetensors").read_bytes()) == summary.adapter_sha256
    loaded = PeftModel.from_pretrained(Workbench(config).base.network, tmp_path)
    assert set(loaded.peft_config) == {"default"}
    aliases = {
        a: open_registry(read_settings().mlflow_uri).alias("small", a) for a in ("candidate", "challenger", "champion")
    }
    assert aliases == {"candidate": 1, "challenger": 1, "champion": 1}


def test_same_seed_ends_with_the_same_adapter_and_another_seed_with_another():
    digests = [
        federated_training(small_config("rounds=1", seed)).adapter_sha256 for seed in ("seed=0", "seed=0", "seed=1")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_ledger_books_what_lies_in_the_store():
    summary = federated_training(small_config())
    store = open_store(summary.store_url)
    first, second = (RoundKeys(summary.run_id, index) for index in (1, 2))
    assert summary.uplink_bytes == sum(found.size for keys in (first, second) for found in store.list(keys.uplinks))
    shares = {found.key: found.size for found in store.list(f"{second.root}/downlink/")}
    ranks = records_of(summary)[0].ranks
    plans = sum(found.size for keys in (first, second) for found in store.list(f"{keys.root}/plans/"))
    drawn, downloaded = 0, sum(shares[second.share(rank)] for rank in ranks.values())
    assert summary.downlink_bytes == drawn + downloaded + plans


def test_a_client_that_fails_is_recorded_and_the_round_goes_on(monkeypatch):
    honest = flows.client_update.train_client.fn

    def broken(*args, client_id, **kwargs):
        if client_id == "c02":
            raise DataError("client c02", "its disk is gone")
        return honest(*args, client_id=client_id, **kwargs)

    monkeypatch.setattr(flows.client_update.train_client, "fn", broken)
    summary = federated_training(small_config("rounds=1"))
    record = records_of(summary)[1]
    assert record.outcome == "degraded"
    assert [(r.client_id, r.reason) for r in record.collection.refused] == [("c02", "DataError")]
    assert sorted(record.weights) == ["c00", "c01", "c03", "c04"]
    assert record.ranks["c02"] == 8, "a client that failed keeps its rank"


def test_a_round_without_quorum_fails_loudly_and_leaves_the_adapter_unchanged(monkeypatch):
    def absent(*_args, **_kwargs):
        raise DataError("client", "gone")

    honest = flows.client_update.train_client.fn
    monkeypatch.setattr(flows.client_update.train_client, "fn", absent)
    with pytest.raises(QuorumError, match=r"got 0 accepted; expected at least 3; .*rankweave resume small-") as caught:
        federated_training(small_config())
    assert caught.value.exit_code == 5
    run_id = caught.value.subject.removeprefix("run ").split(",")[0]
    store = open_store(read_settings().store_url)
    initial, failed = read_records(store, run_id)
    assert (failed.outcome, failed.models) == ("failed", initial.models)

    monkeypatch.setattr(flows.client_update.train_client, "fn", honest)
    summary = federated_training(small_config(f"resume_run={run_id}"))
    assert [r.outcome for r in records_of(summary)] == ["initial", "failed", "committed", "committed"]
    assert summary.rounds == 2, "a failed round is no substitute for a trained one"


MOVING = (
    "ranks.schedulers=[sa_annealing, energy]",
    "ranks.options=[{name: floor_rank, value: 2}]",
    "training.local_methods=[rm_lora, proximal, prefix_nested]",
)
DEATHS = [
    *((step, ()) for step in ("collect_updates", "aggregate_updates", "publish_adapter", "close_round")),
    *((step, MOVING) for step in ("plan_round", "reschedule_ranks", "close_round")),
]


@pytest.mark.parametrize(
    ("step", "overrides"), DEATHS, ids=lambda value: value if isinstance(value, str) else len(value)
)
def test_a_run_that_died_goes_on_trains_nobody_twice_and_ends_with_the_same_adapter(monkeypatch, step, overrides):
    uninterrupted = federated_training(small_config(*overrides))
    trained = []
    honest_train, honest_step = flows.client_update.train_client.fn, getattr(flows.federated_round, step)

    def counted(*args, client_id, round_index, **kwargs):
        manifest = honest_train(*args, client_id=client_id, round_index=round_index, **kwargs)
        trained.append((round_index, client_id))
        return manifest

    def die_after(*args, **kwargs):
        honest_step(*args, **kwargs)
        raise PowerCutError

    monkeypatch.setattr(flows.client_update.train_client, "fn", counted)
    monkeypatch.setattr(flows.federated_round, step, die_after)
    with pytest.raises(PowerCutError):
        federated_training(small_config(*overrides))
    monkeypatch.setattr(flows.federated_round, step, honest_step)
    run_id = (set(list_run_ids(open_store(read_settings().store_url))) - {uninterrupted.run_id}).pop()
    summary = federated_training(small_config(f"resume_run={run_id}"))

    clients = ["c00", "c01", "c02", "c03", "c04"]
    assert sorted(trained) == [(t, c) for t in (1, 2) for c in clients]
    assert summary.adapter_sha256 == uninterrupted.adapter_sha256
    assert summary.model_version == uninterrupted.model_version + 2, "a step that is run again registers nothing twice"


def test_mlflow_holds_metrics_by_round_and_tables():
    summary = federated_training(small_config())
    client = mlflow.MlflowClient(read_settings().mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`rankweave.run_id` = '{summary.run_id}'")
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [point.step for point in history] == [1, 2]
    assert run.data.params["aggregation.name"] == "rbla"
    assert run.info.status == "FINISHED"
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert {"clients.json", "ledger.json", "rank-changes.json", "config.json"} <= files
    pictures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
    drawn = {"quality-by-bytes", "partition", "ranks", "prefix-ladder", "coverage-and-energy-global"}
    assert pictures == {f"figures/{name}.png" for name in drawn}
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "ledger.json")).read_text(encoding="utf8"))
    position = table["columns"].index("bytes")
    assert sum(row[position] for row in table["data"]) == summary.uplink_bytes + summary.downlink_bytes


def test_a_termination_inside_a_round_is_a_wish_that_the_next_step_sees(monkeypatch):
    """Prefect's own handler would raise wherever the program happens to be, where a library may swallow it."""
    evaluate = flows.federated_round.evaluate_adapter

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    monkeypatch.setattr("flows.federated_round.evaluate_adapter", interrupted)
    config, seen, before = small_config(), [], signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RunCancelledError, match="was cancelled"), _progress_bar("", config, Event(), seen):
            federated_training(config)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert read_records(open_store(read_settings().store_url), seen[-1])[-1].outcome == "committed"
