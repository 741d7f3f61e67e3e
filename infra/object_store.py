"""Where adapters are exchanged: the contract of an object store, how one is opened by URL, and the write-once commit.

Not here: the stores themselves (`directory_store`, `s3_store`) and the grammar of keys (`tasks.rounds`).

Every fact about an object stands in its bytes or its key, never in a store's own metadata, so that all stores behave
alike. Keys are written once; `put` overwrites and is for the few objects that may change.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from infra.store_url import S3Location, folder_of, parse_s3_url, scheme_of
from tasks.errors import ObjectConflictError, StoreError

_SEGMENT = re.compile(r"[A-Za-z0-9._=-]+")
_MAX_KEY_BYTES = 900  # S3 allows 1024; the rest is for the prefix of the store


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing.

    Args:
        key: The object's key, relative to the store.
        size: Length of the object [bytes].
    """

    key: str
    size: int


@dataclass(frozen=True)
class StoreCapabilities:
    """What a store honours, found by trying it out. Some stores accept a condition or a digest and ignore it.

    Args:
        creates_if_absent: Of many simultaneous creators of one key exactly one wins. Where False, `create` looks
            before it writes, which is right only while the server is the single committer.
        checks_md5: An upload whose bytes do not have the announced `Content-MD5` is refused.
        checks_sha256: The same for `x-amz-checksum-sha256`.
        takes_checksums: An upload with a checksum of boto3's own is accepted (over TLS that is a trailer).
        presigns: Presigned URLs can be made.
    """

    creates_if_absent: bool
    checks_md5: bool
    checks_sha256: bool
    takes_checksums: bool
    presigns: bool


@dataclass(frozen=True)
class PresignedPut:
    """Leave to upload one object of known length and digest, without credentials.

    Args:
        url: Where to PUT.
        headers: Headers that were signed and must be sent as they are.
    """

    url: str
    headers: dict[str, str]


class ObjectStore(Protocol):
    """A place that keeps bytes under keys. All methods raise `StoreUnavailableError` when trying again may help."""

    @property
    def url(self) -> str:
        """The URL that opens this store; holds no credentials."""
        ...

    @property
    def capabilities(self) -> StoreCapabilities:
        """What this store honours; found out on first use."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there; readers see the old bytes or the new, never a mixture."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless its key is taken.

        Returns:
            True if this call made the object. False if the key holds an object already; after a lost answer that may
            be this very call's, so compare the bytes before blaming anybody (`commit` does).
        """
        ...

    def get(self, key: str) -> bytes:
        """Read a whole object.

        Raises:
            ObjectNotFoundError: The key holds no object.
        """
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `data[start : start + length]` of an object: fewer bytes at its end, none behind it.

        Raises:
            ObjectNotFoundError: The key holds no object.
        """
        ...

    def size(self, key: str) -> int | None:
        """Return an object's length [bytes], or None if the key holds no object."""
        ...

    def list(self, prefix: str) -> "list[ObjectInfo]":
        """Return all objects whose key begins with `prefix` ("" for all), sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is absent is no error."""
        ...

    def presign_get(self, key: str, expires_s: int) -> str:
        """Return a URL that reads one object without credentials until it expires [s]."""
        ...

    def presign_put(self, key: str, *, length: int, md5_base64: str, expires_s: int) -> PresignedPut:
        """Return leave to create one object of exactly these bytes, once (where the store honours conditions)."""
        ...


def check_key(key: str) -> str:
    """Return a key if every store can hold it.

    Raises:
        StoreError: It is absolute, too long, or has an empty, dotted or otherwise unsafe segment.
    """
    segments = key.split("/")
    if any(not _SEGMENT.fullmatch(part) or part in {".", ".."} for part in segments) or len(key) > _MAX_KEY_BYTES:
        raise StoreError(
            f"object key {key!r}",
            "is not a key that every store can hold",
            expected="segments of letters, digits and ._=- joined by single slashes, relative, without ..",
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return a listing prefix if it can begin a key: empty, whole segments, or the beginning of one.

    Raises:
        StoreError: It cannot begin a valid key.
    """
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def commit(store: ObjectStore, key: str, data: bytes) -> bool:
    """Write an object once and for all; safe to repeat after any crash or lost answer.

    Args:
        store: Where to write.
        key: A write-once key.
        data: The bytes it must hold from now on.

    Returns:
        True if the object was made now, False if the same bytes were there already and are adopted.

    Raises:
        ObjectConflictError: The key holds other bytes.
        StoreUnavailableError: The store does not answer; committing again is safe.
    """
    if store.create(key, data):
        return True
    held = store.get(key)
    if held == data:
        return False
    raise ObjectConflictError(
        f"object {key} in {store.url}",
        "already holds other bytes, and this key is written once",
        got=f"sha256 {hashlib.sha256(held).hexdigest()}",
        expected=f"sha256 {hashlib.sha256(data).hexdigest()}",
        remedy="two writers disagree about one step: start under a new run id, or look into both before deleting any",
    )


def open_store(url: str) -> ObjectStore:
    """Open a store by its URL.

    Args:
        url: A folder (`path` or `file:///path`), or `s3://bucket/prefix?endpoint=https://...&region=...`, where the
            endpoint may also come from `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` (none: AWS itself), and
            `timeout_s` and `attempts` bound the patience. Credentials come from boto3's own chain only.

    Returns:
        The store. Opening the same URL again in this process is cheap. Nothing is sent or written yet.

    Raises:
        StoreError: The URL is malformed or its scheme unknown.
    """
    scheme = scheme_of(url)
    if scheme == "file":
        return _open_directory(folder_of(url))
    if scheme == "s3":
        return _open_s3(parse_s3_url(url), os.getpid())
    raise StoreError(f"store {url}", "unknown scheme", got=f"{scheme}://", expected="a folder, file:// or s3://")


# Remembered, because making an S3 client costs about as much as a hundred requests, and a store must be probed only
# once. The process id is part of the key, because connections must not be shared across a fork; threads may share.
@lru_cache(maxsize=16)
def _open_s3(location: S3Location, _process: int) -> ObjectStore:
    from infra.s3_store import S3Store

    return S3Store(location)


def _open_directory(folder: Path) -> ObjectStore:
    from infra.directory_store import DirectoryStore

    return DirectoryStore(folder)
