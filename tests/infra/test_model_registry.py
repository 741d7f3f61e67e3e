import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from infra.model_registry import (
    CANDIDATE,
    CHALLENGER,
    CHAMPION,
    CROWNED_BY_TAG,
    CROWNED_WHY_TAG,
    PARENT_TAG,
    ModelRegistry,
    ModelVersion,
    open_registry,
)
from infra.tracking import RunTracker, open_tracker
from tasks.errors import (
    AdapterFormatError,
    ObjectConflictError,
    RegistryError,
    RegistryUnavailableError,
)
from tests.infra.mlflow_stores import free_port, fresh_store, mlflow_server

SPEC = {"kind": "mlp", "location": "", "input_shape": [1, 8, 8], "hidden_sizes": [16], "num_labels": 10}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return fresh_store(tmp_path_factory, "registry")


@pytest.fixture(scope="module")
def registry(store) -> ModelRegistry:
    return open_registry(store)


@pytest.fixture
def tracker(store, request) -> RunTracker:
    return open_tracker(store, experiment="digits", run_id=request.node.name)


def files_of(seed: int, size: int = 4000) -> dict[str, bytes]:
    return {"adapter_model.safetensors": bytes([seed]) * size, "adapter_config.json": b'{"r": 4}'}


def publish(registry: ModelRegistry, tracker: RunTracker, round_index: int, **changes) -> ModelVersion:
    arguments = {
        "mlflow_run_id": tracker.mlflow_run_id,
        "round_index": round_index,
        "adapter_files": files_of(round_index),
        "base_spec": SPEC,
        "base_digest": "d" * 64,
        "tags": {"aggregator": "rbla", "ranks": "1,2,4"},
    }
    return registry.publish(tracker.run_id, **arguments | changes)


def tags_of(registry: ModelRegistry, version: ModelVersion) -> dict[str, str]:
    return registry.client.get_model_version(version.name, str(version.version)).tags


def folder_of(registry: ModelRegistry, version: ModelVersion, into: Path) -> Path:
    run_id = registry.client.get_model_version(version.name, str(version.version)).run_id
    into.mkdir(exist_ok=True)
    folder = f"adapters/round-{version.round_index:03d}"
    return Path(registry.client.download_artifacts(run_id, folder, str(into)))


def test_a_published_version_says_where_it_comes_from(registry, tracker):
    first = publish(registry, tracker, 1)
    second = publish(registry, tracker, 2)
    sha256 = hashlib.sha256(files_of(2)["adapter_model.safetensors"]).hexdigest()
    assert second == ModelVersion(tracker.run_id, 2, 2, sha256, f"models:/{tracker.run_id}/2")
    assert tags_of(registry, second) == {
        "rankweave.run_id": tracker.run_id,
        "rankweave.round": "2",
        "rankweave.parent_version": "1",
        "adapter_sha256": sha256,
        "aggregator": "rbla",
        "ranks": "1,2,4",
    }
    assert PARENT_TAG not in tags_of(registry, first)
    found = registry.client.get_model_version(second.name, "2")
    assert found.run_id == tracker.mlflow_run_id
    assert found.source.endswith("/artifacts/adapters/round-002")


def test_a_parent_that_the_caller_names_is_kept(registry, tracker):
    publish(registry, tracker, 1)
    second = publish(registry, tracker, 2, tags={PARENT_TAG: "champion 7"})
    assert tags_of(registry, second)[PARENT_TAG] == "champion 7"


def test_the_artifact_is_a_peft_directory_with_the_base_by_reference(registry, tracker, tmp_path):
    folder = folder_of(registry, publish(registry, tracker, 3), tmp_path)
    data = folder / "data" / "rankweave"
    assert {p.name: p.read_bytes() for p in (data / "adapter").iterdir()} == files_of(3)
    assert json.loads((data / "base.json").read_text()) == {
        "spec": SPEC,
        "digest": "d" * 64,
        "adapter_sha256": hashlib.sha256(files_of(3)["adapter_model.safetensors"]).hexdigest(),
    }
    extra = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) - 4008
    assert extra < 4096
    assert "rankweave==" in (folder / "requirements.txt").read_text()


def test_publishing_again_returns_the_version_there_is(registry, tracker):
    first = publish(registry, tracker, 1)
    publish(registry, tracker, 2)
    assert publish(registry, tracker, 1) == first
    assert len(registry.client.search_model_versions(f"name = '{tracker.run_id}'")) == 2


def test_another_adapter_for_a_published_round_is_refused_and_changes_nothing(registry, tracker, tmp_path):
    first = publish(registry, tracker, 1)
    with pytest.raises(ObjectConflictError, match="published already as version 1"):
        publish(registry, tracker, 1, adapter_files=files_of(9))
    weights = folder_of(registry, first, tmp_path) / "data/rankweave/adapter/adapter_model.safetensors"
    assert weights.read_bytes() == files_of(1)["adapter_model.safetensors"]
    assert len(registry.client.search_model_versions(f"name = '{tracker.run_id}'")) == 1


def test_files_of_a_server_that_died_before_registering_are_replaced(registry, tracker, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
    folder = "adapters/round-001/data/rankweave/adapter"
    tracker.log_file(tmp_path / "adapter_model.safetensors", folder)
    version = publish(registry, tracker, 1)
    weights = folder_of(registry, version, tmp_path / "got") / "data/rankweave/adapter/adapter_model.safetensors"
    assert weights.read_bytes() == files_of(1)["adapter_model.safetensors"]


def test_a_round_is_found_by_run_and_index(registry, tracker, store):
    first = publish(registry, tracker, 1)
    other = open_tracker(store, experiment="digits", run_id="another")
    theirs = registry.publish(
        tracker.run_id,
        mlflow_run_id=other.mlflow_run_id,
        round_index=1,
        adapter_files=files_of(8),
        base_spec=SPEC,
        base_digest="d" * 64,
        tags={},
    )
    assert theirs.version == 2
    assert registry.version_of(tracker.run_id, run_id=tracker.run_id, round_index=1) == first
    assert registry.version_of(tracker.run_id, run_id="another", round_index=1) == theirs
    assert registry.version_of(tracker.run_id, run_id="another", round_index=11) is None
    assert registry.version_of("no-such-model", run_id="another", round_index=1) is None


@pytest.mark.parametrize(
    "files",
    [{}, {"adapter_model.safetensors": b""}, {**files_of(1), "../escape": b""}],
    ids=["empty", "no-config", "nested"],
)
def test_files_that_are_no_peft_directory_are_refused(registry, tracker, files):
    with pytest.raises(AdapterFormatError, match=r"adapter_model\.safetensors and adapter_config\.json"):
        publish(registry, tracker, 1, adapter_files=files)


def test_an_alias_moves_and_goes(registry, tracker):
    name = tracker.run_id
    assert registry.alias(name, CHAMPION) is None
    for index in (1, 2):
        registry.set_alias(name, CANDIDATE, publish(registry, tracker, index).version)
    registry.set_alias(name, CHALLENGER, 1)
    assert [registry.alias(name, alias) for alias in (CANDIDATE, CHALLENGER, CHAMPION)] == [2, 1, None]
    registry.delete_alias(name, CHALLENGER)
    registry.delete_alias(name, CHALLENGER)
    assert [registry.alias(name, alias) for alias in (CANDIDATE, CHALLENGER)] == [2, None]


def test_an_alias_of_a_version_that_is_not_there_is_refused(registry, tracker):
    publish(registry, tracker, 1)
    with pytest.raises(RegistryError, match="champion to version 5: refused"):
        registry.set_alias(tracker.run_id, CHAMPION, 5)
    assert registry.alias(tracker.run_id, CHAMPION) is None


def test_the_first_is_crowned_and_later_ones_are_not(registry, tracker):
    first, second = (publish(registry, tracker, index) for index in (1, 2))
    assert registry.crown_first(first.name, first.version, "first version to pass") is True
    assert registry.crown_first(second.name, second.version, "also good") is False
    assert registry.crown_first(first.name, first.version, "asked again") is True
    assert registry.alias(first.name, CHAMPION) == first.version
    tags = tags_of(registry, first)
    assert tags[CROWNED_WHY_TAG] == "first version to pass"
    assert tags[CROWNED_BY_TAG]
    assert CROWNED_WHY_TAG not in tags_of(registry, second)


def test_a_crown_that_another_server_took_meanwhile_is_not_claimed(registry, tracker, monkeypatch):
    first, second = (publish(registry, tracker, index) for index in (1, 2))
    client = registry.client
    set_alias = client.set_registered_model_alias

    def overtaken(name, alias, version):
        set_alias(name, alias, version)
        set_alias(name, alias, str(second.version))

    monkeypatch.setattr(client, "set_registered_model_alias", overtaken)
    assert registry.crown_first(first.name, first.version, "first") is False
    assert CROWNED_WHY_TAG not in tags_of(registry, first)


def test_a_run_without_our_tag_is_refused(registry, tracker):
    stray = registry.client.create_run(tracker.experiment_id)
    with pytest.raises(RegistryError, match=r"no tag rankweave\.run_id"):
        publish(registry, replace(tracker, mlflow_run_id=stray.info.run_id), 1)


def test_a_registry_that_is_down_is_reported():
    registry = open_registry(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryUnavailableError, match="champion"):
        registry.alias("digits", CHAMPION)


def test_a_real_server_tracks_publishes_and_crowns(tmp_path_factory, tmp_path):
    backend = fresh_store(tmp_path_factory, "served")
    with mlflow_server(backend, tmp_path) as address:
        tracker = open_tracker(address, experiment="digits", run_id="r-1")
        tracker.log_params({"aggregation.name": "rbla"})
        tracker.log_round(1, {"accuracy": 0.5})
        tracker.log_table("clients", [{"client": "c00", "rank": 1}])
        registry = open_registry(address)
        version = publish(registry, tracker, 1)
        assert publish(registry, tracker, 1) == version
        assert registry.version_of("r-1", run_id="r-1", round_index=1) == version
        assert registry.version_of("r-1", run_id="r-1", round_index=2) is None
        assert registry.alias("r-1", CHAMPION) is None
        assert registry.alias("absent", CHAMPION) is None
        assert registry.crown_first("r-1", 1, "first") is True
        adapter = folder_of(registry, version, tmp_path / "got") / "data" / "rankweave" / "adapter"
        assert {p.name: p.read_bytes() for p in adapter.iterdir()} == files_of(1)
        with pytest.raises(RegistryError, match="refused"):
            registry.set_alias("r-1", CHAMPION, 9)
        tracker.finish("KILLED")
        adopted = open_tracker(address, experiment="digits", run_id="r-1")
        assert adopted.mlflow_run_id == tracker.mlflow_run_id
        assert adopted.client.get_run(adopted.mlflow_run_id).info.status == "RUNNING"
    with pytest.raises(RegistryUnavailableError):
        registry.alias("r-1", CHAMPION)
