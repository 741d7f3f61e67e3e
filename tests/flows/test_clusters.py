"""Several tasks in one run (TAC): six sites, two tasks that contradict each other, the same ranks in both."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from prefect import Task
from sklearn.datasets import load_digits

import flows.client_update
import flows.federated_round
from configs.loading import load_config
from configs.workbench import Workbench
from flows.federated_training import federated_training
from infra.model_registry import PARENT_TAG, open_registry
from infra.object_store import open_store
from infra.run_store import commit_record, find_record, read_adapter, read_adapter_files, read_records, write_adapter
from infra.settings import read_settings
from tasks.adapters.peft_files import decode_adapter
from tasks.adapters.products import dense_product
from tasks.errors import DataError
from tasks.rounds.keys import GLOBAL, RoundKeys
from tasks.rounds.records import Clustering, RoundPlan, RoundRecord, check_digest, decode
from tasks.rounds.summary import RunHandle

RUN_ID = "sites-1"
NUM_LABELS, NUM_TRAIN, NUM_TEST = 5, 100, 40
SITES = [f"site-{number}" for number in range(6)]
CLIENTS = [f"c0{number}" for number in range(6)]
TASKS = {"cluster-1": CLIENTS[::2], "cluster-2": CLIENTS[1::2]}
TWO_CLUSTERS = {client: f"cluster-{1 + number % 2}" for number, client in enumerate(CLIENTS)}
OVERRIDES = [
    "name=sites",
    "rounds=3",
    "data.source=hub",
    "data.partition.name=natural",
    "data.partition.column=site",
    "data.partition.num_clients=0",
    "model.hidden_sizes=[64]",
    "ranks.max_rank=8",
    "ranks.client_fractions=[0.25, 0.5, 1.0]",
    "cohort.quorum=3",
    "training.epochs=3",
    "training.batch_size=16",
    "training.optimizer.learning_rate=0.01",
]
CLUSTERED = "aggregation.clusters.enabled=true"
TWO = "aggregation.clusters.num_clusters=2"


def write_sites(folder, shifts):
    """Every site has digits of its own; site s calls digit d by the number (d + shifts[s]) mod 5."""
    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(np.flatnonzero(digits.target < NUM_LABELS))
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64"), "site": datasets.Value("string")}
    folder.mkdir()
    for split, size, start in (("train", NUM_TRAIN, 0), ("test", NUM_TEST, NUM_TRAIN * len(SITES))):
        rows = []
        for number, site in enumerate(SITES):
            for i in order[start + number * size :][:size]:
                picture = Image.fromarray((digits.images[i] * 15).astype(np.uint8))
                label = int(digits.target[i] + shifts[number]) % NUM_LABELS
                rows.append({"image": picture, "label": label, "site": site})
        datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what `datasets` writes out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("two") / "tasks", [0, 2] * 3)


def config_of(folder, *overrides):
    return load_config("digits-staircase", [*OVERRIDES, f"data.location={folder}", *overrides])


@dataclass(frozen=True)
class PlainRun:
    """Rounds as the flow strings them together, without Prefect and MLflow; `records` grow, round 0 first."""

    folder: Path
    bench: Workbench
    records: list[RoundRecord]

    def go_on(self, rounds, away=()):
        """Run more rounds, in which some clients fail."""
        run = RunHandle(RUN_ID, str(self.folder), tracking_uri="", experiment="sites")
        with plain_steps(away):
            for _ in range(rounds):
                last = self.records[-1]
                self.records.append(flows.federated_round._steps(run, last.round_index + 1, last, self.bench))
        return self.records[-1]

    def found(self, kind, name) -> Any:
        """Read a record of the last round."""
        keys = RoundKeys(RUN_ID, self.records[-1].round_index)
        return find_record(open_store(str(self.folder)), getattr(keys, name), kind)


@contextmanager
def plain_steps(away):
    honest = flows.client_update.train_client.fn

    def train(*args, client_id, **kwargs):
        if client_id in away:
            raise DataError(f"client {client_id}", "is away")
        return honest(*args, client_id=client_id, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name, step in list(vars(flows.federated_round).items()):
            if isinstance(step, Task):
                patch.setattr(flows.federated_round, name, step.fn)
        patch.setattr(flows.federated_round, "publish_adapter", lambda _run, plan, *_rest: plan.round_index)
        patch.setattr(flows.federated_round, "show_diagnostics", lambda *_args: None)
        patch.setattr("tasks.close_round.open_tracker", lambda *_args, **_kwargs: Mock())
        patch.setattr(flows.client_update.train_client, "fn", train)
        yield


def start(folder, data, *overrides):
    bench, keys = Workbench(config_of(data, *overrides)), RoundKeys(RUN_ID, 0)
    store, adapter = open_store(str(folder)), bench.initial_adapter()
    initial = RoundRecord(
        run_id=RUN_ID,
        round_index=0,
        outcome="initial",
        models={GLOBAL: write_adapter(store, keys, adapter, bench.peft_config(adapter))},
        ranks=bench.initial_ranks(),
    )
    return PlainRun(folder, bench, [commit_record(store, keys.record, initial)])


# --- which clients belong together ----------------------------------------------------------------------------


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("method", ["rbla", "raflora", "flora_stack"])
def test_two_tasks_end_in_two_clusters_whatever_the_ranks_and_the_aggregator(tmp_path, two_tasks, method):
    run = start(tmp_path / "store", two_tasks, CLUSTERED, f"aggregation.name={method}")
    for clients in TASKS.values():
        assert sorted(run.records[0].ranks[client] for client in clients) == [2, 4, 8]
    run.go_on(2)
    assert [record.labels for record in run.records[1:]] == [TWO_CLUSTERS, TWO_CLUSTERS]
    for cluster, clients in TASKS.items():
        assert run.records[2].metrics[f"accuracy_{cluster.replace('-', '_')}"] > 0.7
        assert sum(run.records[2].weights[client] for client in clients) == pytest.approx(1.0)


@pytest.mark.usefixtures("home")
def test_clusters_hold_when_updates_are_but_noise(tmp_path, two_tasks):
    """Soon each cluster's adapter fits its task, and what training still adds shows no groups."""
    run = start(tmp_path / "store", two_tasks, CLUSTERED, "training.epochs=8")
    run.go_on(4)
    assert run.found(Clustering, "clustering").silhouette is None, "the last round alone speaks for one cluster"
    assert [record.labels for record in run.records[1:]] == [TWO_CLUSTERS] * 4
    assert min(record.metrics["accuracy"] for record in run.records[2:]) > 0.85


@pytest.mark.usefixtures("home")
def test_one_task_keeps_one_cluster_though_ranks_differ(tmp_path):
    """Low ranks go on to learn what high ranks know: from the third round on updates show the ranks, not tasks."""
    run = start(tmp_path / "store", write_sites(tmp_path / "data", [0] * 6), CLUSTERED)
    run.go_on(3)
    assert run.found(Clustering, "clustering").silhouette > 0.25
    assert [record.labels for record in run.records[1:]] == [dict.fromkeys(CLIENTS, "cluster-1")] * 3
    assert run.records[-1].metrics["accuracy"] == run.records[-1].metrics["accuracy_cluster_1"] > 0.8


@pytest.mark.usefixtures("home")
def test_a_cluster_whose_clients_are_all_away_keeps_its_adapter_and_version(tmp_path, two_tasks):
    run = start(tmp_path / "store", two_tasks, CLUSTERED, TWO)
    first = run.go_on(1)
    second = run.go_on(1, away=TASKS["cluster-2"])
    assert second.labels == TWO_CLUSTERS, "three clients of one task are not parted to make up the number"
    assert second.models["cluster-2"] == first.models["cluster-2"]
    assert second.models["cluster-1"].version == 2
    assert "accuracy_cluster_2" not in second.metrics
    third = run.go_on(1)
    assert third.labels == TWO_CLUSTERS
    plan = run.found(RoundPlan, "plan")
    assert plan.models["cluster-2"] == first.models["cluster-2"].sha256
    assert {name: model.round_index for name, model in third.models.items()} == {"cluster-1": 3, "cluster-2": 3}


@pytest.mark.usefixtures("home")
def test_a_newcomer_joins_the_cluster_of_its_task(tmp_path, two_tasks):
    run = start(tmp_path / "store", two_tasks, CLUSTERED)
    first = run.go_on(1, away=["c03"])
    assert "c03" not in first.labels
    assert run.go_on(1).labels == TWO_CLUSTERS


# --- a whole run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, two_tasks, prefect_backend):
    """Three rounds with two clusters, published; the environment stays that of the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWEAVE_HOME", str(tmp_path_factory.mktemp("run") / "home"))
        for name in ("RANKWEAVE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        config = config_of(two_tasks, CLUSTERED, TWO)
        yield config, federated_training(config)


def accuracy_on(bench, folder, sites):
    """Judge a published folder with nothing but PEFT and the raw rows of some sites."""
    model = PeftModel.from_pretrained(Workbench(bench.config).base.network, folder).eval()
    rows = np.flatnonzero(np.isin(np.array(bench.raw.test.columns["site"]), sites))
    with torch.no_grad():
        logits = model(pixel_values=bench.test.batch(rows)["pixel_values"]).logits
    return float(np.mean(logits.argmax(dim=-1).numpy() == bench.raw.test.labels[rows]))


def unpacked(store_url, record, model, folder):
    """Write a published adapter as the PEFT folder it is."""
    folder.mkdir()
    for name, data in read_adapter_files(open_store(store_url), record.run_id, record.models[model]).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.flow
def test_each_cluster_is_judged_on_its_own_sites_and_beats_the_one_model_for_all(tmp_path, two_tasks, finished):
    config, summary = finished
    bench = Workbench(config)
    last = read_records(open_store(summary.store_url), summary.run_id)[-1]
    alone = start(tmp_path / "store", two_tasks)
    alone.go_on(3)
    shared = unpacked(str(alone.folder), alone.records[-1], GLOBAL, tmp_path / "global")
    for cluster, sites in (("cluster-1", SITES[::2]), ("cluster-2", SITES[1::2])):
        own = accuracy_on(bench, unpacked(summary.store_url, last, cluster, tmp_path / cluster), sites)
        assert own == pytest.approx(last.metrics[f"accuracy_{cluster.replace('-', '_')}"], abs=1e-6)
        assert own > accuracy_on(bench, shared, sites) + 0.3
    assert "clusters" not in alone.records[-1].metrics


@pytest.mark.flow
def test_clients_train_from_the_adapter_of_their_own_cluster(finished):
    _, summary = finished
    store, keys = open_store(summary.store_url), RoundKeys(summary.run_id, 2)
    first, plan = read_records(store, summary.run_id)[1], decode(RoundPlan, store.get(keys.plan), keys.plan)
    assert {i.client_id: i.model for i in plan.invitations} == TWO_CLUSTERS
    assert sorted(plan.shares) == [f"cluster-{c}/{rank}" for c in (1, 2) for rank in (2, 4, 8)]
    for invitation in plan.invitations:
        share = plan.share_of(invitation)
        data = check_digest(store.get(share.key), share.sha256, share.key)
        assert share.key == keys.share(invitation.rank, invitation.model)
        whole = read_adapter(store, summary.run_id, first.models[invitation.model])
        for path, pair in decode_adapter(data).pairs.items():
            wanted = whole.pairs[path].b[:, : pair.rank] @ whole.pairs[path].a[: pair.rank]
            torch.testing.assert_close(dense_product(pair).float(), wanted.float())


@pytest.mark.flow
def test_each_cluster_is_a_registered_model_with_versions_and_names_that_move(finished):
    _, summary = finished
    registry = open_registry(read_settings().mlflow_uri)
    assert summary.models == {"cluster-1": 3, "cluster-2": 3}
    for name in ("sites-cluster-1", "sites-cluster-2"):
        aliases = [registry.alias(name, alias) for alias in ("candidate", "challenger", "champion")]
        assert aliases == [3, 3, 3]
        versions = {v: registry.client.get_model_version(name, str(v)) for v in (1, 2, 3)}
        assert [found.tags[PARENT_TAG] for found in versions.values()] == ["0", "1", "2"]
    assert registry.alias("sites", "candidate") is None


@pytest.mark.flow
def test_a_resumed_round_adopts_its_clusters_and_ends_with_the_same_adapters(monkeypatch, finished):
    config, summary = finished
    store = open_store(summary.store_url)
    before = read_records(store, summary.run_id)
    for round_index in (2, 3):
        keys = RoundKeys(summary.run_id, round_index)
        for key in [keys.record, *(found.key for found in store.list(keys.root + "/cluster-"))]:
            store.delete(key)

    monkeypatch.setattr("tasks.group_updates.gram", None)  # nothing is compared again
    resumed = federated_training(config.model_copy(update={"resume_run": summary.run_id}))
    after = read_records(store, summary.run_id)
    assert [record.models for record in after] == [record.models for record in before]
    assert [record.labels for record in after] == [record.labels for record in before]
    assert resumed.models == summary.models, "nothing is registered twice"
