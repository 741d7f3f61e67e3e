"""The contract of `ObjectStore`, one suite over every store: a folder and real S3 server processes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from infra.object_store import ObjectInfo, ObjectStore, StoreCapabilities, commit
from tasks.errors import ObjectConflictError, ObjectNotFoundError, StoreError

CEPH = pytest.param("ceph", marks=pytest.mark.s3_real)
EVERY = ["directory", "ministack", "rclone", CEPH]
# rclone ignores every condition: two creators at the same time both believe that they won.
ATOMIC = ["directory", "ministack", CEPH]
# Thousands of writes are slow elsewhere, and paging is the same code.
QUICK = ["directory", "ministack"]

HONOURED = {
    "directory": StoreCapabilities(
        creates_if_absent=True, checks_md5=False, checks_sha256=False, takes_checksums=False, presigns=False
    ),
    "ministack": StoreCapabilities(
        creates_if_absent=True, checks_md5=True, checks_sha256=True, takes_checksums=True, presigns=True
    ),
    "rclone": StoreCapabilities(
        creates_if_absent=False, checks_md5=True, checks_sha256=False, takes_checksums=True, presigns=True
    ),
    "ceph": StoreCapabilities(
        creates_if_absent=True, checks_md5=True, checks_sha256=False, takes_checksums=True, presigns=True
    ),
}


@pytest.fixture
def store(request: pytest.FixtureRequest, fresh_store: Callable[[str], ObjectStore]) -> ObjectStore:
    return fresh_store(request.param)


@pytest.mark.parametrize("kind", EVERY)
def test_capabilities_are_what_the_store_really_honours(kind: str, fresh_store: Callable[[str], ObjectStore]) -> None:
    assert fresh_store(kind).capabilities == HONOURED[kind]


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_probe_leaves_nothing_behind(store: ObjectStore) -> None:
    assert store.capabilities
    assert store.list("") == []


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_get_returns_what_was_put(store: ObjectStore) -> None:
    for data in (b"", b"x", np.random.default_rng(0).bytes(1 << 20)):
        key = f"runs/r1/rounds/1/global/{len(data)}.safetensors"
        store.put(key, data)
        assert store.get(key) == data
        assert store.size(key) == len(data)


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_put_replaces(store: ObjectStore) -> None:
    store.put("a/b", b"longer than the second")
    store.put("a/b", b"second")
    assert store.get("a/b") == b"second"


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_create_keeps_what_is_there(store: ObjectStore) -> None:
    assert store.create("a/b", b"first") is True
    assert store.create("a/b", b"other") is False
    assert store.create("a/b", b"first") is False
    assert store.get("a/b") == b"first"


@pytest.mark.parametrize("store", ATOMIC, indirect=True)
def test_create_has_one_winner_among_sixteen(store: ObjectStore) -> None:
    for key in ("race/1", "race/2", "race/3"):
        bodies = [f"writer {number:02d}".encode() * 100 for number in range(16)]
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(lambda body, key=key: store.create(key, body), bodies))
        assert made.count(True) == 1
        assert store.get(key) == bodies[made.index(True)]


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_commit_adopts_the_same_bytes(store: ObjectStore) -> None:
    assert commit(store, "runs/r1/run.json", b"{}") is True
    assert commit(store, "runs/r1/run.json", b"{}") is False
    assert store.get("runs/r1/run.json") == b"{}"


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_commit_of_other_bytes_is_a_conflict_that_changes_nothing(store: ObjectStore) -> None:
    commit(store, "runs/r1/run.json", b"{}")
    with pytest.raises(ObjectConflictError, match=r"runs/r1/run\.json.*got sha256 .*expected sha256"):
        commit(store, "runs/r1/run.json", b"[]")
    assert store.get("runs/r1/run.json") == b"{}"


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_range_is_the_slice_of_the_whole(store: ObjectStore) -> None:
    store.put("a/b", b"0123456789")
    for start, length in [(0, 1), (0, 10), (3, 4), (9, 1), (5, 100), (10, 1), (50, 5)]:
        assert store.get_range("a/b", start, length) == b"0123456789"[start : start + length]
    for start, length in [(-1, 5), (0, 0), (0, -1)]:
        with pytest.raises(StoreError, match="no such range"):
            store.get_range("a/b", start, length)


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_list_is_sorted_and_begins_with_the_prefix(store: ObjectStore) -> None:
    for key in ("runs/r2/x", "runs/r10/b", "runs/r10/a/c", "runs/r10-a", "other"):
        store.put(key, key.encode())
    assert store.list("runs/r10/") == [ObjectInfo("runs/r10/a/c", 12), ObjectInfo("runs/r10/b", 10)]
    assert [info.key for info in store.list("runs/r1")] == ["runs/r10-a", "runs/r10/a/c", "runs/r10/b"]
    assert [info.key for info in store.list("")] == [
        "other",
        "runs/r10-a",
        "runs/r10/a/c",
        "runs/r10/b",
        "runs/r2/x",
    ]
    assert store.list("nothing/") == []


@pytest.mark.parametrize("store", QUICK, indirect=True)
def test_list_goes_past_the_first_thousand(store: ObjectStore) -> None:
    keys = [f"many/{number:05d}" for number in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
        assert [info.key for info in store.list("many/")] == keys
        list(pool.map(store.delete, keys))
    assert store.list("many/") == []


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_missing_object_is_told_from_an_empty_one(store: ObjectStore) -> None:
    store.put("a/empty", b"")
    assert store.size("a/empty") == 0
    assert store.size("a/missing") is None
    with pytest.raises(ObjectNotFoundError, match="a/missing"):
        store.get("a/missing")
    with pytest.raises(ObjectNotFoundError, match="a/missing"):
        store.get_range("a/missing", 0, 5)


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_delete_removes_and_may_be_repeated(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    assert store.size("a/b") is None
    assert store.list("") == []
    assert store.create("a/b", b"again") is True


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_unsafe_key_is_refused_everywhere(store: ObjectStore) -> None:
    uses: list[Callable[[str], object]] = [store.get, store.size, store.delete]
    uses += [lambda key: store.put(key, b""), lambda key: store.create(key, b"")]
    for key in ("", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a b", "a/ä", "~a", "a" * 901):
        for use in uses:
            with pytest.raises(StoreError, match="not a key that every store can hold"):
                use(key)


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_readers_never_see_a_mixture_while_an_object_is_replaced(store: ObjectStore) -> None:
    versions = [bytes([number]) * (1 << 20) for number in range(6)]
    store.put("a/b", versions[0])
    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(lambda: [store.put("a/b", version) for version in versions * 2])
        seen = [pool.submit(store.get, "a/b") for _ in range(20)]
        assert all(read.result(timeout=60) in versions for read in seen)
        writing.result(timeout=60)
    assert store.get("a/b") == versions[-1]
