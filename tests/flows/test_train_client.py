"""One client's work: done once per attempt, and only where it was invited."""

import msgspec
import pytest

from tasks.errors import (
    BaseModelMismatchError,
    DeadlineExceededError,
    IntegrityError,
    ObjectConflictError,
    RunNotFoundError,
)
from tasks.rounds import keys
from tasks.rounds.records import encode
from tasks.train_client import train_client
from tasks.training.loop import train
from tests.flows.staged import bench_of, stage_round


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return stage_round(tmp_path_factory.mktemp("planned") / "store")


@pytest.fixture
def staged(template, tmp_path):
    return template.copy(tmp_path / "store")


@pytest.fixture
def trainings(monkeypatch):
    """Counts the trainings of this process."""
    counted = []

    def count(*args, **kwargs):
        counted.append(kwargs["seed"])
        return train(*args, **kwargs)

    monkeypatch.setattr("tasks.local_work.train", count)
    return counted


def run_client(staged, *, client="c00", bench=None, run_id="small-1", round_index=1, attempt=1, stop=None):
    return train_client.fn(
        staged.url,
        run_id,
        round_index=round_index,
        client_id=client,
        attempt=attempt,
        bench=bench or staged.bench,
        should_stop=lambda: stop,
    )


def uplink(staged):
    return {found.key: staged.store.get(found.key) for found in staged.store.list(staged.keys.uplinks)}


def test_the_same_attempt_trains_once_and_returns_its_first_manifest(staged, trainings):
    first = run_client(staged)
    before = uplink(staged)
    assert run_client(staged) == first
    assert len(trainings) == 1
    assert uplink(staged) == before


def test_an_attempt_that_died_before_its_manifest_is_taken_up_with_the_same_update(staged, trainings):
    run_client(staged)
    update = staged.store.get(staged.key("c00", keys.UPDATE))
    staged.store.delete(staged.key("c00", keys.MANIFEST))
    run_client(staged)
    assert len(trainings) == 2
    assert staged.store.get(staged.key("c00", keys.UPDATE)) == update


def test_another_attempt_gives_the_same_update_under_its_own_key(staged):
    first, second = run_client(staged), run_client(staged, attempt=2)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.update_sha256 == second.update_sha256


def test_somebody_elses_update_under_the_key_is_not_vouched_for(staged):
    staged.store.put(staged.key("c00", keys.UPDATE), b"planted")
    with pytest.raises(ObjectConflictError):
        run_client(staged)
    assert staged.store.size(staged.key("c00", keys.MANIFEST)) is None


def test_another_base_model_is_refused_before_training(staged, trainings):
    with pytest.raises(BaseModelMismatchError, match="client c00, round 1: holds another base model"):
        run_client(staged, bench=bench_of("seed=1"))
    assert (trainings, uplink(staged)) == ([], {})


@pytest.mark.parametrize("client", ["c99", "c04"])
def test_a_client_that_is_not_invited_is_refused_before_training(staged, trainings, client):
    staged.store.delete(staged.keys.part("c04"))
    with pytest.raises(RunNotFoundError, match=f"client {client}, run small-1, round 1: has no invitation"):
        run_client(staged, client=client)
    assert (trainings, uplink(staged)) == ([], {})


@pytest.mark.parametrize("where", [{"round_index": 2}, {"run_id": "small-2"}])
def test_a_round_without_a_plan_is_named(staged, where):
    with pytest.raises(RunNotFoundError, match="has no invitation"):
        run_client(staged, **where)


def test_an_altered_share_is_not_trained_on(staged, trainings):
    staged = staged.planned(shares={n: msgspec.structs.replace(s, drawn=False) for n, s in staged.plan.shares.items()})
    staged.store.put(staged.keys.part("c00"), encode(staged.plan.part_of(staged.plan.invitations[0])))
    key = staged.keys.share(2)
    staged.store.put(key, staged.store.get(key)[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match="bytes were altered"):
        run_client(staged)
    assert trainings == []


def test_a_stopped_training_uploads_nothing(staged):
    with pytest.raises(DeadlineExceededError):
        run_client(staged, stop=DeadlineExceededError("client training", "took too long"))
    assert uplink(staged) == {}
