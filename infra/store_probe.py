"""What an S3 server honours, tried out with throw-away objects, because several accept what they then ignore.

Some servers ignore `If-None-Match`, some honour it one after the other but let several win a race, some never compare
a checksum. All answer 200.
"""

import base64
import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.exceptions import ClientError

from infra.object_store import StoreCapabilities
from infra.s3_client import answer_of
from tasks.errors import StoreUnavailableError

_RACERS = 16
_REFUSED = range(400, 500)
_NOT_OFFERED = {400, 501}


def probe(client: Any, bucket: str, *, prefix: str, url: str) -> StoreCapabilities:
    """Try out what a store honours; leaves nothing behind.

    Args:
        client: A boto3 S3 client.
        bucket: The bucket.
        prefix: Under which the throw-away objects are written.
        url: The store's URL, for messages.

    Returns:
        What the store honours.

    Raises:
        ClientError: The store refuses to be written at all: credentials, missing bucket.
        BotoCoreError: The store does not answer.
        StoreUnavailableError: The store answers, but not steadily enough to tell.
    """
    # Several processes may probe at once, so each needs names of its own; nothing computed depends on them.
    base = f"{prefix}/{secrets.token_hex(8)}"
    place = {"Bucket": bucket, "Body": b"probe"}
    keys = {name: f"{base}/{name}" for name in ("plain", "again", "race", "md5", "sha256", "checksum")}
    try:
        # The first write carries nothing special: if it fails, the store is at fault and not a feature.
        client.put_object(**place, Key=keys["plain"])
        return StoreCapabilities(
            creates_if_absent=_creates_if_absent(client, place, keys, url=url),
            checks_md5=_refuses(client, {**place, "Key": keys["md5"], "ContentMD5": _digest("md5")}, url=url),
            checks_sha256=_refuses(
                client, {**place, "Key": keys["sha256"], "ChecksumSHA256": _digest("sha256")}, url=url
            ),
            takes_checksums=not _refuses(
                client, {**place, "Key": keys["checksum"], "ChecksumAlgorithm": "CRC32"}, url=url
            ),
            presigns=True,
        )
    finally:
        for key in keys.values():
            client.delete_object(Bucket=bucket, Key=key)


def _creates_if_absent(client: Any, place: dict[str, Any], keys: dict[str, str], *, url: str) -> bool:
    def create(key: str) -> int:
        return _status(client, {**place, "Key": key, "IfNoneMatch": "*"})

    first, second = create(keys["again"]), create(keys["again"])
    if first in _NOT_OFFERED or second == 200:
        return False
    if first != 200 or second not in {409, 412}:
        raise _unsteady(url, f"HTTP {first}, then {second}")
    # Best effort is not enough: a server that looks first and writes then has several winners here.
    with ThreadPoolExecutor(_RACERS) as pool:
        answers = list(pool.map(create, [keys["race"]] * _RACERS))
    if not set(answers) <= {200, 409, 412}:
        raise _unsteady(url, f"HTTP {sorted(set(answers))}")
    return answers.count(200) == 1


def _refuses(client: Any, request: dict[str, Any], *, url: str) -> bool:
    status = _status(client, request)
    if status != 200 and status not in _REFUSED and status != 501:
        raise _unsteady(url, f"HTTP {status}")
    return status != 200


def _status(client: Any, request: dict[str, Any]) -> int:
    try:
        client.put_object(**request)
    except ClientError as error:
        return answer_of(error)[0]
    return 200


def _digest(name: str) -> str:
    """Return a well-formed digest of other bytes than the probe's."""
    return base64.b64encode(hashlib.new(name, b"other", usedforsecurity=False).digest()).decode()


def _unsteady(url: str, got: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"probe of store {url}", "the answers do not tell what it honours", got=got, remedy="try again later"
    )
