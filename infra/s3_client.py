"""How Rankweave talks to S3 through boto3: the client's settings, and what botocore's errors mean in our words.

Not here: what is done with the client (`s3_store`) and what a store honours (`store_probe`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as EndpointError
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import HTTPError, ProtocolError

from infra.store_url import S3Location
from tasks.errors import ObjectNotFoundError, RankweaveError, StoreError, StoreUnavailableError

MIB = 1024 * 1024
SINGLE_REQUEST_BYTES = 64 * MIB
"""Up to here one request carries an object: a third less CPU than the transfer manager."""
PART_BYTES = 32 * MIB
"""Above it, objects travel in parts of this size."""

# botocore lets urllib3's own error out where the body of a refusal is cut.
_CUT_SHORT = (IncompleteReadError, ResponseStreamingError, ProtocolError)
_NOT_FOUND = {"NoSuchKey", "404", "NotFound"}
_TRY_AGAIN = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "429"}
_WRONG_BYTES = {"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "XAmzContentChecksumMismatch"}


def is_aws(endpoint: str | None) -> bool:
    """Tell whether an endpoint is Amazon's own, which differs from the others in addressing and checksums."""
    host = urlsplit(endpoint).hostname if endpoint else None
    return host is None or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def s3_client(location: S3Location) -> Any:
    """Make the one client that a process uses for a store; threads may share it.

    Away from AWS, boto3's own checksums are sent only where S3 demands them: over TLS they travel as a trailer, which
    Ceph and others refuse (HTTP 411), and several stores accept a wrong one silently. `Content-MD5` does the work.

    Args:
        location: Bucket, endpoint, region and patience.

    Returns:
        A boto3 S3 client. Nothing is sent yet.

    Raises:
        StoreError: boto3 cannot make a client of this, e.g. a profile that does not exist.
    """
    aws = is_aws(location.endpoint)
    checksums = "when_supported" if aws else "when_required"
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "virtual" if aws else "path"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        retries={"mode": "standard", "total_max_attempts": location.attempts},
        max_pool_connections=32,
        connect_timeout=min(5.0, location.timeout_s),
        read_timeout=location.timeout_s,
        tcp_keepalive=True,
    )
    with translated(f"store {location.url}"):
        session = boto3.Session()
        # Stores other than AWS rarely have regions, but every signature needs one.
        region = location.region or session.region_name or (None if aws else "us-east-1")
        return session.client("s3", endpoint_url=location.endpoint, region_name=region, config=config)


def transfers() -> TransferConfig:
    """Settings for objects too large for one request.

    "classic" is essential: the native transfer client that boto3 prefers on some machines drops the endpoint and
    sends private adapters to AWS (boto3 issue 4839).
    """
    return TransferConfig(
        multipart_threshold=SINGLE_REQUEST_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=4,
        io_chunksize=MIB,
        preferred_transfer_client="classic",
    )


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Turn botocore's errors into ours; each says whether trying again may help.

    Args:
        subject: What is being done to what; begins the message.
    """
    try:
        yield
    except ClientError as error:
        raise _from_answer(subject, error) from error
    except (BotoCoreError, Boto3Error, RetriesExceededError, HTTPError) as error:
        raise _from_failure(subject, error) from error


def read_through(read: Callable[[], bytes], attempts: int) -> bytes:
    """Read a body, and again while it ends too early: botocore repeats requests, never bodies.

    Args:
        read: Asks for the object and reads what comes.
        attempts: How often at most, at least 1.

    Returns:
        The whole body.
    """
    for attempt in range(attempts - 1):
        try:
            return read()
        except _CUT_SHORT:
            time.sleep(0.05 * 2**attempt)
    return read()


def answer_of(error: ClientError) -> tuple[int, str]:
    """Return HTTP status and S3 error code of a refusal."""
    return (
        int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
        str(error.response.get("Error", {}).get("Code", "")),
    )


def _from_answer(subject: str, error: ClientError) -> RankweaveError:
    status, code = answer_of(error)
    got = f"HTTP {status} {code}"
    if code == "NoSuchBucket":
        return StoreError(subject, "the bucket does not exist", got=got, remedy="create it, or correct the store URL")
    if code in _NOT_FOUND:
        return ObjectNotFoundError(subject, "there is no such object", got=got)
    if code in _WRONG_BYTES:
        problem = "the bytes arrived damaged and were not stored"
        return StoreUnavailableError(subject, problem, got=got, remedy="try again")
    if status >= 500 or status == 429 or code in _TRY_AGAIN:
        return StoreUnavailableError(subject, "the store cannot answer now", got=got, remedy="try again later")
    return _refusal(subject, status, code, error)


def _refusal(subject: str, status: int, code: str, error: ClientError) -> StoreError:
    got = f"HTTP {status} {code}"
    if code == "RequestTimeTooSkewed":
        return StoreError(subject, "this machine's clock is wrong", got=got, remedy="set the clock")
    if status in {401, 403} or code in {"ExpiredToken", "InvalidToken"}:
        remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile), and what they may do there"
        return StoreError(subject, "the store refuses these credentials for this", got=got, remedy=remedy)
    return StoreError(subject, "the store refuses the request", got=f"{got}: {error}")


def _from_failure(subject: str, error: Exception) -> RankweaveError:
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        return StoreError(subject, "no credentials for the store", got=error, remedy=remedy)
    if isinstance(error, SSLError):
        remedy = "point AWS_CA_BUNDLE at the right certificates"
        return StoreError(subject, "the store's certificate cannot be verified", got=error, remedy=remedy)
    if isinstance(error, EndpointError | HTTPClientError | HTTPError | IncompleteReadError | RetriesExceededError):
        remedy = "check that it runs and is reachable from here, then run again"
        return StoreUnavailableError(subject, "the store does not answer", got=error, remedy=remedy)
    return StoreError(subject, "boto3 cannot do this", got=error)
