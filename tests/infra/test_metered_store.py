"""The meter counts what passes through it, as often as it passes, and changes nothing on the way."""

import pytest

from infra.directory_store import DirectoryStore
from infra.metered_store import Meter, MeteredStore
from infra.object_store import ObjectStore, commit
from tasks.errors import ObjectConflictError, ObjectNotFoundError, StoreUnavailableError
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys

ROUND = RoundKeys("small-1", 1)
UPDATE = ROUND.uplink("c00", 1, keys.UPDATE)
SHARE = ROUND.share(4)


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def inner(tmp_path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def store(inner, meter) -> ObjectStore:
    return MeteredStore(inner, meter)


def test_objects_pass_unchanged_and_are_counted_by_kind(store, inner, meter):
    inner.put(SHARE, b"share")
    assert store.create(UPDATE, b"update") is True
    store.put(ROUND.uplink("c00", 1, keys.FAILURE), b"no")
    assert (store.get(SHARE), store.get_range(SHARE, 1, 2), inner.get(UPDATE)) == (b"share", b"ha", b"update")
    assert meter.uploaded == {"update": 6, "failure": 2}
    assert meter.downloaded == {"share": 5 + 2}


def test_repeats_count_again(store, inner, meter):
    inner.put(SHARE, b"share")
    for _ in range(3):
        store.get(SHARE)
        commit(store, UPDATE, b"update")
    assert meter.downloaded == {"share": 15, "update": 2 * 6}, "a commit that is repeated looks what lies there"
    assert meter.uploaded == {"update": 3 * 6}


def test_questions_and_misses_move_no_body(store, inner, meter):
    inner.put(SHARE, b"share")
    assert (store.size(SHARE), store.size(UPDATE)) == (5, None)
    assert [found.key for found in store.list("")] == [SHARE]
    with pytest.raises(ObjectNotFoundError):
        store.get(UPDATE)
    store.delete(SHARE)
    assert inner.list("") == []
    assert (meter.uploaded, meter.downloaded) == ({}, {})
    assert (store.url, store.capabilities) == (inner.url, inner.capabilities)


def test_an_upload_that_fails_was_sent_all_the_same(store, inner, meter, monkeypatch):
    def refuse(self, key, data):
        raise StoreUnavailableError("store", "does not answer")

    monkeypatch.setattr(DirectoryStore, "create", refuse)
    with pytest.raises(StoreUnavailableError):
        store.create(UPDATE, b"update")
    assert meter.uploaded == {"update": 6}


def test_a_conflict_is_still_one(store, inner):
    inner.put(UPDATE, b"theirs")
    with pytest.raises(ObjectConflictError):
        commit(store, UPDATE, b"mine")
