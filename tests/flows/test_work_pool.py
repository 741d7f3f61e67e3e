"""A round on a real process work pool: the deployment of `infra/prefect.yaml`, a real worker, a client that dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.settings import PREFECT_API_URL
from prefect.utilities.importtools import import_object

import flows.client_update
import flows.dispatch
from flows.client_update import client_update, run_client
from flows.dispatch import ASK_S, Pools
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import read_records
from tasks.errors import ConfigError, DataError, DeadlineExceededError
from tests.flows.small import small_config

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_backend")]

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = Path("infra/prefect.yaml")
DEPLOYMENT, POOL, VICTIM = "client-update/local", "clients", "c01"
PATIENCE_S = 120.0
STOP_S = 30.0
CONFIG = [
    "rounds=1",
    "data.partition.num_clients=3",
    "cohort.quorum=2",
    f"cohort.deadline_s={PATIENCE_S}",
    f"cohort.grace_s={PATIENCE_S}",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory, prefect_backend):
    """One RANKWEAVE_HOME for the module, whose round is dear."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("pool")
        patch.setenv("RANKWEAVE_HOME", str(folder / "server"))
        patch.setenv("RANKWEAVE_STORE", str(folder / "store"))
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def worker(home):
    """A site: a pool, the deployment on it, and a worker that knows only its own environment."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    environment = {
        **os.environ,
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "RANKWEAVE_HOME": str(home / "site"),
        "PYTHONWARNINGS": "ignore",
    }
    prefect = [sys.executable, "-m", "prefect"]
    deploy = [*prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
    start = [*prefect, "worker", "start", "--pool", POOL, "--limit", "3"]
    with (home / "worker.log").open("w") as log:
        process = subprocess.Popen(start, env=environment, cwd=home, stdout=log, stderr=log)
    try:
        with (home / "deploy.log").open("w") as log:
            code = subprocess.call(deploy, env=environment, cwd=ROOT, stdout=log, stderr=log, timeout=PATIENCE_S)
        assert code == 0, (home / "deploy.log").read_text()
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:  # Prefect's worker now and then waits on for a run that was killed under it
            process.kill()
            process.wait(PATIENCE_S)


def runs_tagged(client, *tags):
    return {run.name: run for run in client.read_flow_runs(flow_run_filter=tagged(*tags))}


def tagged(*tags):
    return FlowRunFilter(tags=FlowRunFilterTags(all_=list(tags)))


def kill_when_started(api_url, killed):
    """Kill the victim's process as soon as it has one: long before it has imported what it needs to train."""
    end = time.monotonic() + PATIENCE_S
    with SyncPrefectClient(api_url) as client:
        while time.monotonic() < end:
            runs = client.read_flow_runs(flow_run_filter=tagged(f"client:{VICTIM}"))
            if runs and runs[0].infrastructure_pid:
                killed.append(int(runs[0].infrastructure_pid.rpartition(":")[2]))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.05)


@pytest.fixture(scope="module")
def pooled(worker):
    """A run whose clients are on the pool; one of them is killed without a word."""
    killed = []
    killer = threading.Thread(target=kill_when_started, args=(PREFECT_API_URL.value(), killed), daemon=True)
    killer.start()
    started = time.monotonic()
    summary = federated_training(small_config(*CONFIG, "dispatch.mode=pools", f"dispatch.deployment={DEPLOYMENT}"))
    seconds = time.monotonic() - started
    killer.join(PATIENCE_S)
    record = read_records(open_store(summary.store_url), summary.run_id)[1]
    with get_client(sync_client=True) as client:
        return summary, record, runs_tagged(client, "rankweave", summary.run_id), seconds


def test_every_deployment_names_a_flow_of_ours_on_one_pool():
    entries = yaml.safe_load((ROOT / DEPLOYMENTS).read_text(encoding="utf8"))["deployments"]
    found = {f"{import_object(e['entrypoint']).name}/{e['name']}": e["work_pool"]["name"] for e in entries}
    assert found == {"federated-training/local": POOL, DEPLOYMENT: POOL}
    assert small_config().dispatch.deployment == DEPLOYMENT


def test_a_client_killed_without_a_word_is_missing_and_does_not_hang_the_round(pooled):
    _, record, runs, seconds = pooled
    assert (record.outcome, record.collection.missing, record.collection.refused) == ("degraded", (VICTIM,), ())
    assert runs[f"{VICTIM}-round-001-attempt-1"].state_name == "Crashed"
    assert seconds < PATIENCE_S, "it waited for the deadline"


def test_updates_come_from_processes_of_their_own(pooled):
    _, record, runs, _ = pooled
    clients = [run for name, run in runs.items() if name.startswith("c0")]
    pids = {run.infrastructure_pid for run in clients}
    assert len(pids) == 3
    assert None not in pids
    assert str(os.getpid()) not in {pid.rpartition(":")[2] for pid in pids}
    done = {name for name, run in runs.items() if name.startswith("c0") and run.state_name == "Completed"}
    assert done == {f"{a.client_id}-round-001-attempt-1" for a in record.collection.accepted}
    assert len(done) == 2


def test_runs_are_named_tagged_and_hang_under_their_round(pooled):
    summary, _, runs, _ = pooled
    clients = {f"c0{i}-round-001-attempt-1" for i in range(3)}
    assert set(runs) == {summary.run_id, "round-001", *clients}
    assert {name: set(runs[name].tags) - {"rankweave", summary.run_id} for name in clients} == {
        name: {f"client:{name[:3]}"} for name in clients
    }
    with get_client(sync_client=True) as client:
        parents = {client.read_task_run(runs[name].parent_task_run_id).flow_run_id for name in clients}
    assert parents == {runs["round-001"].id}


def test_adapter_is_the_inline_runs_bit_for_bit(pooled, monkeypatch):
    honest = run_client

    def one_never_answers(store_url, run_id, round_index, ticket, **kwargs):
        if ticket.client_id != VICTIM:
            honest(store_url, run_id, round_index, ticket, **kwargs)

    monkeypatch.setattr(flows.dispatch, "run_client", one_never_answers)
    inline = federated_training(small_config(*CONFIG))
    assert pooled[0].adapter_sha256 == inline.adapter_sha256
    assert pooled[0].metrics == inline.metrics


def test_a_client_that_begins_after_its_round_was_closed_refuses_to_train(pooled):
    with pytest.raises(DeadlineExceededError, match="the round was closed before this run began"):
        client_update(pooled[0].run_id, 1, VICTIM, attempt=2)
    store = open_store(pooled[0].store_url)
    assert not [found for found in store.list(f"runs/{pooled[0].run_id}/") if f"/{VICTIM}/" in found.key]


def test_a_client_that_fails_on_a_pool_tells_the_server_why(home, monkeypatch):
    def broken(*_args, **_kwargs):
        raise DataError("client c00", "its disk is gone")

    asked = []
    config = small_config(*CONFIG, "dispatch.mode=external", "cohort.deadline_s=20")
    monkeypatch.setattr(flows.client_update, "train_client", broken)

    def run_here(run, plan, tickets, bench):
        for ticket in tickets:
            with pytest.raises(DataError):
                client_update(run.run_id, plan.round_index, ticket.client_id, ticket.attempt)
            asked.append(run.run_id)
        return Pools(run, plan, [], deployment="")

    monkeypatch.setattr("flows.federated_round.dispatch_clients", run_here)
    with pytest.raises(Exception, match=r"refused: c00 \(DataError\)"):
        federated_training(config)
    assert len(asked) == 3


def test_an_unknown_deployment_is_named_with_its_remedy(home):
    with pytest.raises(ConfigError, match=r"dispatch.deployment: a/b: .*`prefect deploy --all") as caught:
        federated_training(small_config(*CONFIG, "dispatch.mode=pools", "dispatch.deployment=a/b"))
    assert caught.value.exit_code == 2


def test_prefect_is_asked_seldom_and_no_more_once_all_runs_have_ended(monkeypatch):
    now, answers, asked = [0.0], [True, False], []

    def answer(flow_runs):
        asked.append(now[0])
        return answers.pop(0)

    monkeypatch.setattr(flows.dispatch, "_start_on_pool", lambda *_: "a-run")
    monkeypatch.setattr(flows.dispatch, "_any_unfinished", answer)
    pools = Pools(None, None, ["ticket"], deployment="x/y", clock=lambda: now[0])
    seen = []
    for now[0] in range(20):
        seen.append(pools.is_running())
    assert asked == [ASK_S, 2 * ASK_S]
    assert seen == [True] * 10 + [False] * 10
