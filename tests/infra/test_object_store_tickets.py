"""Presigned URLs against real servers: a ticket uploads exactly the announced bytes, once where conditions count."""

import base64
import hashlib
from collections.abc import Callable
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from infra.object_store import ObjectStore, PresignedPut
from tasks.errors import StoreError

CEPH = pytest.param("ceph", marks=pytest.mark.s3_real)
SIGNED = ["ministack", "rclone", CEPH]
RIGHT = b"the announced bytes"


@pytest.fixture
def store(request: pytest.FixtureRequest, fresh_store: Callable[[str], ObjectStore]) -> ObjectStore:
    return fresh_store(request.param)


def _ticket(store: ObjectStore, key: str, data: bytes = RIGHT, expires_s: int = 60) -> PresignedPut:
    digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    return store.presign_put(key, length=len(data), md5_base64=digest, expires_s=expires_s)


def _send(method: str, url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    request = Request(url, data=data, headers=headers or {}, method=method)  # noqa: S310  # loopback, made above
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=20) as answer:
            return answer.status, answer.read()
    except HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()


@pytest.mark.parametrize("store", SIGNED, indirect=True)
def test_ticket_uploads_the_announced_bytes(store: ObjectStore) -> None:
    ticket = _ticket(store, "up/c00")
    assert _send("PUT", ticket.url, RIGHT, ticket.headers)[0] == 200
    assert store.get("up/c00") == RIGHT


@pytest.mark.parametrize("store", SIGNED, indirect=True)
def test_ticket_refuses_other_bytes(store: ObjectStore) -> None:
    ticket = _ticket(store, "up/c00")
    longer = RIGHT + b"!"
    assert _send("PUT", ticket.url, RIGHT[::-1], ticket.headers)[0] == 400
    assert _send("PUT", ticket.url, longer, {**ticket.headers, "Content-Length": str(len(longer))})[0] == 403
    assert store.list("") == []


@pytest.mark.parametrize("store", SIGNED, indirect=True)
@pytest.mark.parametrize("left_out", ["Content-MD5", "If-None-Match"])
def test_ticket_refuses_without_its_headers(store: ObjectStore, left_out: str) -> None:
    ticket = _ticket(store, "up/c00")
    headers = {name: value for name, value in ticket.headers.items() if name != left_out}
    assert _send("PUT", ticket.url, RIGHT, headers)[0] == 403
    assert store.list("") == []


@pytest.mark.parametrize("store", SIGNED, indirect=True)
def test_ticket_counts_once_where_conditions_count(store: ObjectStore) -> None:
    ticket = _ticket(store, "up/c00")
    assert _send("PUT", ticket.url, RIGHT, ticket.headers)[0] == 200
    replayed = _send("PUT", ticket.url, RIGHT, ticket.headers)[0]
    assert replayed == (412 if store.capabilities.creates_if_absent else 200)


@pytest.mark.parametrize("store", SIGNED, indirect=True)
def test_ticket_is_for_its_own_key(store: ObjectStore) -> None:
    ticket = _ticket(store, "up/c00")
    assert _send("PUT", ticket.url.replace("up/c00", "up/c01"), RIGHT, ticket.headers)[0] == 403
    assert store.list("") == []


@pytest.mark.parametrize("store", SIGNED, indirect=True)
def test_download_url_reads_its_own_object_only(store: ObjectStore) -> None:
    store.put("global/1", b"adapter")
    store.put("global/2", b"another")
    url = store.presign_get("global/1", expires_s=60)
    assert _send("GET", url) == (200, b"adapter")
    assert _send("GET", url.replace("global/1", "global/2"))[0] == 403


@pytest.mark.parametrize("store", ["ministack"], indirect=True)
def test_ticket_for_nonsense_is_not_made(store: ObjectStore) -> None:
    with pytest.raises(StoreError, match="no such lifetime"):
        _ticket(store, "up/c00", expires_s=0)
    with pytest.raises(StoreError, match="no such lifetime"):
        store.presign_get("up/c00", expires_s=8 * 24 * 3600)
    with pytest.raises(StoreError, match="no such upload"):
        store.presign_put("up/c00", length=5, md5_base64="no digest", expires_s=60)
    with pytest.raises(StoreError, match="not a key"):
        _ticket(store, "../up")
