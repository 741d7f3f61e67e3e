"""The object store over S3: any server that speaks it, through boto3.

Every upload in one request carries `Content-MD5`, the one check on arriving bytes that all S3 servers honour. Readers
verify SHA-256 themselves, from the manifest.
"""

import base64
import hashlib
import io
import threading
import time
from contextlib import closing
from typing import Any

from botocore.exceptions import ClientError

from infra.object_store import (
    ObjectInfo,
    PresignedPut,
    StoreCapabilities,
    check_key,
    check_prefix,
)
from infra.s3_client import SINGLE_REQUEST_BYTES, answer_of, read_through, s3_client, transfers, translated
from infra.store_probe import probe
from infra.store_url import S3Location
from tasks.errors import StoreError, StoreUnavailableError

_CREATE_ATTEMPTS = 5
_WEEK_S = 7 * 24 * 3600


class S3Store:
    """An `ObjectStore` in one bucket, below one prefix. Threads may share it; processes open their own.

    Args:
        location: The URL taken apart. Credentials are read now, by boto3's own chain.
    """

    def __init__(self, location: S3Location) -> None:
        self._location = location
        self._client: Any = s3_client(location)
        self._capabilities: StoreCapabilities | None = None
        self._probing = threading.Lock()

    @property
    def url(self) -> str:
        """The URL that opened this store."""
        return self._location.url

    @property
    def capabilities(self) -> StoreCapabilities:
        """What the store honours, tried out once with throw-away objects on first use."""
        with self._probing:
            if self._capabilities is None:
                with translated(f"probe of store {self.url}"):
                    self._capabilities = probe(
                        self._client, self._location.bucket, prefix=self._full("probe"), url=self.url
                    )
            return self._capabilities

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""
        with self._translated(key):
            if len(data) <= SINGLE_REQUEST_BYTES:
                self._put_object(key, data)
            else:
                self._client.upload_fileobj(io.BytesIO(data), **self._where(key), Config=transfers())

    def create(self, key: str, data: bytes) -> bool:
        """Write an object of at most 5 GiB unless its key is taken; return whether this call made it.

        Always one request, because several servers ignore conditions on multipart uploads.
        """
        if not self.capabilities.creates_if_absent:
            return self._look_then_put(key, data)
        for attempt in range(_CREATE_ATTEMPTS):
            made = self._try_create(key, data)
            if made is not None:
                return made
            time.sleep(0.05 * 2**attempt)
        raise StoreUnavailableError(
            self._subject(key), "others keep writing this key at the same time", remedy="try again later"
        )

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        with self._translated(key):
            return read_through(lambda: self._get_once(key), self._location.attempts)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `data[start : start + length]` of an object."""
        if start < 0 or length < 1:
            expected = "at least 1 byte from 0 on"
            raise StoreError(self._subject(key), "no such range", got=f"{length} from {start}", expected=expected)
        with self._translated(key):
            return read_through(lambda: self._get_range_once(key, start, length), self._location.attempts)

    def size(self, key: str) -> int | None:
        """Return an object's length [bytes], or None."""
        with self._translated(key):
            try:
                return int(self._client.head_object(**self._where(key))["ContentLength"])
            except ClientError as error:
                if answer_of(error)[0] != 404:
                    raise
        self._require_bucket()
        return None

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Return all objects whose key begins with `prefix`, sorted by key."""
        skipped = len(self._full(""))
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._location.bucket, Prefix=self._full(check_prefix(prefix))
        )
        with self._translated(prefix or "(any)"):
            found = [
                ObjectInfo(entry["Key"][skipped:], int(entry["Size"]))
                for page in pages
                for entry in page.get("Contents", [])
            ]
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """Remove an object, if there is one."""
        with self._translated(key):
            self._client.delete_object(**self._where(key))

    def presign_get(self, key: str, expires_s: int) -> str:
        """Return a URL that reads one object without credentials until it expires [s]."""
        return self._presign("get_object", key, {}, expires_s)

    def presign_put(self, key: str, *, length: int, md5_base64: str, expires_s: int) -> PresignedPut:
        """Return leave to create one object of exactly these bytes.

        The headers are signed, so another length, other bytes or a missing condition is refused. Where the store
        ignores conditions (`creates_if_absent` is False) the leave can be used again until it expires.
        """
        if length < 0 or len(md5_base64) != 24:
            expected = "a length from 0 on and the base64 of an MD5"
            raise StoreError(self._subject(key), "no such upload", got=f"{length}, {md5_base64}", expected=expected)
        signed = {"ContentLength": length, "ContentMD5": md5_base64, "IfNoneMatch": "*"}
        headers = {"Content-Length": str(length), "Content-MD5": md5_base64, "If-None-Match": "*"}
        return PresignedPut(self._presign("put_object", key, signed, expires_s), headers)

    def _presign(self, operation: str, key: str, extra: dict[str, Any], expires_s: int) -> str:
        if not 1 <= expires_s <= _WEEK_S:
            expected = f"1 to {_WEEK_S} s"
            raise StoreError(self._subject(key), "no such lifetime of a URL", got=expires_s, expected=expected)
        with self._translated(key):
            parameters = {**self._where(key), **extra}
            return self._client.generate_presigned_url(operation, Params=parameters, ExpiresIn=expires_s)

    def _get_once(self, key: str) -> bytes:
        answer = self._client.get_object(**self._where(key))
        # Not `with answer["Body"]`: that hands out the raw stream, which does not compare the length.
        with closing(answer["Body"]) as body:
            if answer["ContentLength"] <= SINGLE_REQUEST_BYTES:
                return body.read()
        buffer = io.BytesIO()
        self._client.download_fileobj(Fileobj=buffer, **self._where(key), Config=transfers())
        return buffer.getvalue()

    def _get_range_once(self, key: str, start: int, length: int) -> bytes:
        try:
            answer = self._client.get_object(**self._where(key), Range=f"bytes={start}-{start + length - 1}")
        except ClientError as error:
            if answer_of(error)[0] == 416:
                return b""
            raise
        with closing(answer["Body"]) as body:
            return body.read()

    def _try_create(self, key: str, data: bytes) -> bool | None:
        """Return True if made, False if taken, None if two writers met and S3 asks to come again (HTTP 409)."""
        try:
            with self._translated(key):
                return self._create_once(key, data)
        except StoreUnavailableError:
            # The answer is lost; the object may be there all the same. Never send again blindly: look.
            if self.size(key) is not None:
                return False
            raise

    def _create_once(self, key: str, data: bytes) -> bool | None:
        try:
            self._put_object(key, data, IfNoneMatch="*")
        except ClientError as error:
            status, _ = answer_of(error)
            if status in {409, 412}:
                return False if status == 412 else None
            raise
        return True

    def _look_then_put(self, key: str, data: bytes) -> bool:
        if self.size(key) is not None:
            return False
        self.put(key, data)
        return True

    def _put_object(self, key: str, data: bytes, **conditions: str) -> None:
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._client.put_object(**self._where(key), Body=data, ContentMD5=digest, **conditions)

    def _require_bucket(self) -> None:
        """Tell a missing bucket from a missing object, which look the same in an answer without a body."""
        try:
            self._client.head_bucket(Bucket=self._location.bucket)
        except ClientError as error:
            # Only 404 is news: credentials of a single client may well not see the bucket as a whole.
            if answer_of(error)[0] == 404:
                remedy = "create it, or correct the store URL"
                raise StoreError(f"store {self.url}", "the bucket does not exist", remedy=remedy) from error

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self._location.bucket, "Key": self._full(check_key(key))}

    def _full(self, key: str) -> str:
        return f"{self._location.prefix}/{key}" if self._location.prefix else key

    def _subject(self, key: str) -> str:
        return f"object {key} in {self.url}"

    def _translated(self, key: str) -> Any:
        return translated(self._subject(key))
