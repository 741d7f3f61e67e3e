import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.mlflow_connection import readable
from infra.tracking import RUN_TAG, RunTracker, open_tracker
from tasks.errors import RegistryError, RegistryUnavailableError, is_transient
from tests.infra.mlflow_stores import free_port, fresh_store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return fresh_store(tmp_path_factory, "tracking")


@pytest.fixture
def tracker(store, request) -> RunTracker:
    return open_tracker(store, experiment="digits", run_id=request.node.name.replace("[", "-").strip("]"))


def run_of(tracker: RunTracker):
    return tracker.client.get_run(tracker.mlflow_run_id)


def test_opening_a_run_again_adopts_it(store):
    first = open_tracker(store, experiment="adoption", run_id="r-1")
    again = open_tracker(store, experiment="adoption", run_id="r-1")
    other = open_tracker(store, experiment="adoption", run_id="r-2")
    assert again == RunTracker(again.client, store, first.experiment_id, first.mlflow_run_id, "r-1")
    assert other.mlflow_run_id != first.mlflow_run_id
    assert len(first.client.search_runs([first.experiment_id])) == 2


def test_one_run_in_two_experiments_is_two_runs(store):
    here, there = (open_tracker(store, experiment=name, run_id="r-1") for name in ("here", "there"))
    assert here.mlflow_run_id != there.mlflow_run_id


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_an_ended_run_runs_again_when_adopted(tracker, store, status):
    tracker.finish(status)
    assert run_of(tracker).info.status == status
    assert run_of(tracker).info.end_time is not None
    open_tracker(store, experiment="digits", run_id=tracker.run_id)
    assert run_of(tracker).info.status == "RUNNING"


def test_of_two_runs_opened_in_the_same_instant_the_older_is_adopted(store):
    first = open_tracker(store, experiment="race", run_id="r-1")
    started = first.client.get_run(first.mlflow_run_id).info.start_time
    tags = {RUN_TAG: "r-1"}
    first.client.create_run(first.experiment_id, start_time=started + 1, tags=tags)
    older = first.client.create_run(first.experiment_id, start_time=started - 1, tags=tags)
    assert open_tracker(store, experiment="race", run_id="r-1").mlflow_run_id == older.info.run_id


def test_sqlite_artifacts_lie_beside_the_database(store, tracker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker.log_text("note.txt", "here")
    files = sorted(tracker.client.list_artifacts(tracker.mlflow_run_id), key=lambda file: file.path)
    assert [file.path for file in files] == ["note.txt"]
    uri = run_of(tracker).info.artifact_uri
    assert uri.startswith(f"file://{store.removeprefix('sqlite:///').removesuffix('mlflow.db')}mlartifacts/")
    assert list(tmp_path.iterdir()) == []


def test_opening_a_run_leaves_mlflows_global_state_alone(store):
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    open_tracker(store, experiment="global", run_id="r-1")
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before
    assert mlflow.active_run() is None


def test_params_survive_any_number_any_length_and_repetition(tracker):
    flat = {f"section.field_{i}": i for i in range(250)} | {"aggregation.name": "rbla", "long": "x" * 7000}
    tracker.log_params(flat)
    tracker.log_params(flat)
    stored = run_of(tracker).data.params
    assert len(stored) == 252
    assert stored["section.field_249"] == "249"
    assert stored["aggregation.name"] == "rbla"
    assert stored["long"] == "x" * 5997 + "..."


def test_a_changed_param_is_refused(tracker):
    tracker.log_params({"seed": 1})
    with pytest.raises(RegistryError, match=rf"{tracker.run_id}, parameters: refused") as caught:
        tracker.log_params({"seed": 2})
    assert not is_transient(caught.value)


def test_rounds_form_a_history_and_may_be_logged_again(tracker):
    for step, accuracy in [(1, 0.25), (2, 0.5), (2, 0.5), (3, 0.75)]:
        tracker.log_round(step, {"accuracy": accuracy, "uplink_bytes": 1000.0 * step})
    history = tracker.client.get_metric_history(tracker.mlflow_run_id, "accuracy")
    assert sorted({(point.step, point.value) for point in history}) == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert run_of(tracker).data.metrics == {"accuracy": 0.75, "uplink_bytes": 3000.0}


def test_a_metric_name_that_mlflow_forbids_is_named(tracker):
    with pytest.raises(RegistryError, match="metrics of round 4"):
        tracker.log_round(4, {"what?": 1.0})


def test_a_table_is_replaced_whole_and_listed_once(tracker):
    tracker.log_table("clients", [{"client": "c00", "rank": 1}, {"client": "c01", "rank": 2}])
    tracker.log_table("clients", [{"client": "c00", "rank": 4, "note": None}])
    path = Path(tracker.client.download_artifacts(tracker.mlflow_run_id, "clients.json"))
    assert json.loads(path.read_text()) == {"columns": ["client", "rank", "note"], "data": [["c00", 4, None]]}
    assert run_of(tracker).data.tags["mlflow.loggedArtifacts"] == '[{"path": "clients.json", "type": "table"}]'


def test_files_arrive_with_their_content(tracker, tmp_path):
    (tmp_path / "curve.png").write_bytes(b"\x89PNG")
    tracker.log_json("ledger", {"b": [1, 2], "a": None})
    tracker.log_text("config/run.yaml", "seed: 1\n")
    tracker.log_file(tmp_path / "curve.png", "plots")
    tracker.log_figure_file(tmp_path / "curve.png")
    found = {
        name: Path(tracker.client.download_artifacts(tracker.mlflow_run_id, name)).read_bytes()
        for name in ("ledger.json", "config/run.yaml", "plots/curve.png", "figures/curve.png")
    }
    assert found["ledger.json"] == b'{\n  "a": null,\n  "b": [\n    1,\n    2\n  ]\n}'
    assert found["config/run.yaml"] == b"seed: 1\n"
    assert found["plots/curve.png"] == found["figures/curve.png"] == b"\x89PNG"


def test_a_missing_file_and_a_value_without_json_are_named(tracker, tmp_path):
    with pytest.raises(RegistryError, match="no such file"):
        tracker.log_file(tmp_path / "absent.png")
    with pytest.raises(RegistryError, match="ledger: cannot be written as JSON"):
        tracker.log_json("ledger", {"when": object()})


def test_tags_replace_their_values(tracker):
    tracker.set_tags({"outcome": "failed", "long": "y" * 9000})
    tracker.set_tags({"outcome": "committed"})
    tags = run_of(tracker).data.tags
    assert (tags["outcome"], tags[RUN_TAG]) == ("committed", tracker.run_id)
    assert tags["long"].endswith("y...")


def test_where_to_look_is_a_command_for_sqlite_and_a_page_for_http(tracker, store):
    served = RunTracker(tracker.client, "http://user:secret@mlflow.example:5000/", "7", "abc", "r-1")
    assert tracker.ui_url == f"mlflow ui --backend-store-uri {store}"
    assert served.ui_url == "http://mlflow.example:5000/#/experiments/7/runs/abc?workflowType=machine_learning"


def test_an_experiment_in_the_trash_is_refused_with_the_remedy(store):
    tracker = open_tracker(store, experiment="thrown-away", run_id="r-1")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(RegistryError, match="mlflow experiments restore"):
        open_tracker(store, experiment="thrown-away", run_id="r-1")


def test_a_server_that_is_down_is_reported_within_seconds():
    started = time.monotonic()
    with pytest.raises(RegistryUnavailableError, match="does not answer") as caught:
        open_tracker(f"http://me:secret@127.0.0.1:{free_port()}", experiment="digits", run_id="r-1")
    assert time.monotonic() - started < 20
    assert is_transient(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"this is no database" * 100, None])
def test_a_database_that_cannot_be_used_is_refused_at_once(tmp_path, content):
    database = tmp_path / "mlflow.db"
    database.mkdir() if content is None else database.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(RegistryError, match="refused") as caught:
        open_tracker(f"sqlite:///{database}", experiment="digits", run_id="r-1")
    assert not is_transient(caught.value)
    assert time.monotonic() - started < 20


def test_an_address_of_no_known_kind_is_refused():
    with pytest.raises(RegistryError, match="gopher"):
        open_tracker("gopher://somewhere", experiment="digits", run_id="r-1")


def test_what_the_user_has_set_in_the_environment_stays(store):
    script = (
        "import os; from infra.mlflow_connection import connect; connect(os.environ['STORE']);"
        "print(os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'], os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    environment = {"PATH": "/usr/bin:/bin", "STORE": store, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["5", "true"]


def test_passwords_are_left_out_of_addresses():
    assert readable("postgresql://me:pw@db:5432/mlflow") == "postgresql://db:5432/mlflow"
    assert readable("sqlite:////data/a@b/mlflow.db") == "sqlite:////data/a@b/mlflow.db"
