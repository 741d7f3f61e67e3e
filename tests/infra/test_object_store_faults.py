"""A real S3 server behind a bad wire, with wrong keys, without its bucket, stopped, and killed in the middle."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.object_store import ObjectStore, commit
from infra.s3_client import MIB
from tasks.errors import (
    ObjectConflictError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
    is_transient,
)
from tests.flaky_proxy import FlakyProxy, flaky_proxy
from tests.servers import BUCKET, S3Server, start_ministack, stranger

CEPH = pytest.param("ceph", marks=pytest.mark.s3_real)
SIGNED = ["ministack", "rclone", CEPH]
ServerOf = Callable[[str], S3Server]
OpenAs = Callable[[S3Server, str], ObjectStore]


@pytest.fixture(scope="module")
def proxy(server_of: ServerOf) -> Iterator[FlakyProxy]:
    with flaky_proxy(f"127.0.0.1:{server_of('ministack').port}") as flaky:
        yield flaky


@pytest.fixture
def behind(proxy: FlakyProxy, server_of: ServerOf, open_as: OpenAs, tmp_path: Path) -> Callable[[int], ObjectStore]:
    """Open a store behind the proxy that tries each request so often, its capabilities known already."""

    def opened(attempts: int) -> ObjectStore:
        url = f"s3://{BUCKET}/flaky?endpoint={proxy.endpoint}&timeout_s=5&attempts={attempts}"
        store = open_as(server_of("ministack"), url)
        assert store.capabilities.creates_if_absent
        return store

    return opened


def test_create_whose_answer_is_lost_says_that_the_key_is_taken(
    proxy: FlakyProxy, behind: Callable[[int], ObjectStore]
) -> None:
    store = behind(1)
    proxy.arm("lose answer", methods=("PUT",))
    assert store.create("a/b", b"mine") is False
    assert proxy.seen == ["PUT", "HEAD"]
    assert store.get("a/b") == b"mine"


@pytest.mark.parametrize("attempts", [1, 3])
def test_commit_whose_answer_is_lost_adopts_its_own_object(
    attempts: int, proxy: FlakyProxy, behind: Callable[[int], ObjectStore]
) -> None:
    store = behind(attempts)
    proxy.arm("lose answer", methods=("PUT",))
    assert commit(store, f"b/{attempts}", b"mine") is False
    with pytest.raises(ObjectConflictError):
        commit(store, f"b/{attempts}", b"other")


def test_store_that_lets_two_win_a_race_is_found_out(proxy: FlakyProxy, server_of: ServerOf, open_as: OpenAs) -> None:
    server = server_of("ministack")
    store = open_as(server, f"s3://{BUCKET}/best-effort?endpoint={proxy.endpoint}&attempts=1")
    # Honest one after the other (a plain write, then one key twice), but two racers hear that they won.
    proxy.arm("none", "none", "none", "200", "200", methods=("PUT",))
    assert not store.capabilities.creates_if_absent
    assert store.capabilities.checks_md5
    assert store.create("a/b", b"mine") is True
    assert store.create("a/b", b"mine") is False


def test_create_that_never_arrived_is_transient(proxy: FlakyProxy, behind: Callable[[int], ObjectStore]) -> None:
    store = behind(1)
    proxy.arm("503", methods=("PUT",))
    with pytest.raises(StoreUnavailableError, match="HTTP 503") as refused:
        store.create("c/b", b"mine")
    assert is_transient(refused.value)
    assert store.create("c/b", b"mine") is True


def test_store_that_recovers_within_the_attempts_is_not_noticed(
    proxy: FlakyProxy, behind: Callable[[int], ObjectStore]
) -> None:
    store = behind(3)
    proxy.arm("503", "503", methods=("PUT",))
    store.put("d/b", b"mine")
    assert store.get("d/b") == b"mine"


def test_create_comes_again_when_writers_met_and_gives_up_in_the_end(
    proxy: FlakyProxy, behind: Callable[[int], ObjectStore]
) -> None:
    store = behind(1)
    proxy.arm("409", "409", methods=("PUT",))
    assert store.create("e/b", b"mine") is True
    proxy.arm("409", "409", "409", "409", "409", methods=("PUT",))
    with pytest.raises(StoreUnavailableError, match="others keep writing"):
        store.create("e/c", b"mine")
    assert proxy.seen == ["PUT"] * 5


def test_upload_damaged_on_the_wire_is_refused_and_may_be_repeated(
    proxy: FlakyProxy, behind: Callable[[int], ObjectStore]
) -> None:
    store = behind(1)
    for write in (store.put, store.create):
        proxy.arm("damage upload", methods=("PUT",))
        with pytest.raises(StoreUnavailableError, match="arrived damaged and were not stored"):
            write("g/b", b"mine")
        assert store.size("g/b") is None
    assert store.create("g/b", b"mine") is True


def test_download_that_is_cut_is_transient_and_never_short(
    proxy: FlakyProxy, behind: Callable[[int], ObjectStore]
) -> None:
    store = behind(1)
    store.put("f/b", b"0123456789")
    proxy.arm("cut body", methods=("GET",))
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.get("f/b")
    assert store.get("f/b") == b"0123456789"


def test_download_that_is_cut_comes_again_within_the_attempts(
    proxy: FlakyProxy, behind: Callable[[int], ObjectStore]
) -> None:
    store = behind(3)
    store.put("f/c", b"0123456789")
    for read in (lambda: store.get("f/c"), lambda: store.get_range("f/c", 0, 10)):
        proxy.arm("cut body", "cut body", methods=("GET",))
        assert read() == b"0123456789"
        assert proxy.seen == ["GET"] * 3
        proxy.arm("cut body", "cut body", "cut body", methods=("GET",))
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            read()


def test_refusal_whose_body_is_cut_is_transient(proxy: FlakyProxy, behind: Callable[[int], ObjectStore]) -> None:
    store = behind(1)
    proxy.arm("cut body", methods=("GET",))
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.get("f/missing")
    with pytest.raises(ObjectNotFoundError):
        store.get("f/missing")


@pytest.mark.parametrize("kind", SIGNED)
def test_wrong_secret_is_refused_with_the_remedy(kind: str, server_of: ServerOf, open_as: OpenAs) -> None:
    server = server_of(kind)
    store = open_as(stranger(server), server.url("stranger"))
    for use in (store.get, store.list, lambda key: store.put(key, b"x")):
        with pytest.raises(StoreError, match=r"refuses these credentials.*HTTP 403.*AWS_ACCESS_KEY_ID") as refused:
            use("a/b")
        assert not is_transient(refused.value)
    with pytest.raises(StoreError, match="refuses these credentials"):
        store.create("a/b", b"x")


@pytest.mark.parametrize("kind", SIGNED)
def test_missing_bucket_is_told_from_a_missing_object(kind: str, server_of: ServerOf, open_as: OpenAs) -> None:
    server = server_of(kind)
    store = open_as(server, server.url("x", bucket="nobody-made-this"))
    uses: list[Callable[[], object]] = [
        lambda: store.get("a/b"),
        lambda: store.size("a/b"),
        lambda: store.list(""),
        lambda: store.put("a/b", b"x"),
        lambda: store.create("a/b", b"x"),
    ]
    for use in uses:
        with pytest.raises(StoreError, match=r"the bucket does not exist.*create it"):
            use()


def test_server_that_is_down_is_transient_within_bounded_time(
    tmp_path: Path, server_of: ServerOf, open_as: OpenAs
) -> None:
    with flaky_proxy("127.0.0.1:1") as closed:
        endpoint = closed.endpoint
    store = open_as(server_of("ministack"), f"s3://{BUCKET}/{tmp_path.name}?endpoint={endpoint}&timeout_s=1&attempts=2")
    uses: list[Callable[[], object]] = [
        lambda: store.get("a/b"),
        lambda: store.size("a/b"),
        lambda: store.create("a/b", b"x"),
    ]
    began = time.monotonic()
    for use in uses:
        with pytest.raises(StoreUnavailableError, match="does not answer") as refused:
            use()
        assert is_transient(refused.value)
    assert time.monotonic() - began < 20


def test_killed_server_keeps_what_it_acknowledged(tmp_path: Path, open_as: OpenAs) -> None:
    server = start_ministack(tmp_path)
    try:
        bodies = {f"a/{number:03d}": bytes([number]) * 50_000 for number in range(40)}
        store = open_as(server, server.url("before", attempts=1, timeout_s=2))
        acknowledged = [key for key, body in bodies.items() if commit(store, key, body)]
        server.kill()
        with pytest.raises(StoreUnavailableError):
            commit(store, "a/040", b"x")
        server.start()
        again = open_as(server, server.url("before"))
        assert [info.key for info in again.list("a/")] == acknowledged == list(bodies)
        assert all(again.get(key) == body for key, body in bodies.items())
        assert commit(again, "a/000", bodies["a/000"]) is False
    finally:
        server.stop()


@pytest.mark.parametrize("kind", SIGNED)
def test_object_too_large_for_one_request_arrives_whole(
    kind: str, fresh_store: Callable[[str], ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    # S3's smallest part is 5 MiB; the real threshold would make this test take ten times as long.
    monkeypatch.setattr("infra.s3_client.PART_BYTES", 5 * MIB)
    for module in ("infra.s3_client", "infra.s3_store"):
        monkeypatch.setattr(f"{module}.SINGLE_REQUEST_BYTES", 6 * MIB)
    store = fresh_store(kind)
    data = np.random.default_rng(0).bytes(11 * MIB)
    store.put("a/put", data)
    assert store.size("a/put") == len(data)
    assert store.get("a/put") == data
    assert store.create("a/created", data) is True
    assert store.get("a/created") == data
