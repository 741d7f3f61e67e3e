"""URLs of object stores, taken apart: a folder, or `s3://bucket/prefix?endpoint=...`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tasks.errors import StoreError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_SECRET = re.compile(r"://[^/?#]*@")
_PREFIX = re.compile(r"([A-Za-z0-9_=-][A-Za-z0-9._=-]*(/|$))*")
_MAX_PREFIX_BYTES = 120
_KNOWN_OPTIONS = ("attempts", "endpoint", "region", "timeout_s")


@dataclass(frozen=True)
class S3Location:
    """An `s3://` URL taken apart, with the endpoint that the environment adds.

    Args:
        url: The URL as given.
        bucket: The bucket; must exist.
        prefix: What all keys begin with, without slashes at its ends; may be empty.
        endpoint: URL of the server; None for AWS.
        region: Region to sign for; None leaves it to boto3's own chain.
        timeout_s: How long to wait for an answer [s].
        attempts: How often a request is tried in all.
    """

    url: str
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None
    timeout_s: float = 60.0
    attempts: int = 5


def scheme_of(url: str) -> str:
    """Return what a URL begins with, in lower case; "file" for a plain path."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else "file"


def folder_of(url: str) -> Path:
    """Return the folder that a plain path or a `file://` URL names.

    Raises:
        StoreError: It names none of this machine.
    """
    if not _SCHEME.match(url):
        if not url:
            raise StoreError("store", "the URL is empty", expected="a folder, file:// or s3://")
        return Path(url).expanduser().resolve()
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise StoreError(f"store {url}", "names no folder of this machine", expected="file:///absolute/path")
    return Path(unquote(parts.path))


def parse_s3_url(url: str) -> S3Location:
    """Take an `s3://` URL apart and add the environment's endpoint.

    Raises:
        StoreError: A part is malformed, unknown, or a secret.
    """
    if _SECRET.search(unquote(url)):
        # The URL itself is not repeated: it holds a secret.
        raise StoreError(
            "store s3://...",
            "credentials do not belong into a URL, which ends up in records and logs",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
        )
    parts = urlsplit(url)
    if not _BUCKET.fullmatch(parts.netloc):
        raise StoreError(f"store {url}", "names no usable bucket", expected="s3://bucket/prefix")
    options = _options(url, parts.query)
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return S3Location(
        url=url,
        bucket=parts.netloc,
        prefix=_prefix(url, parts.path),
        endpoint=_endpoint(url, options.get("endpoint") or environment),
        region=options.get("region"),
        timeout_s=_number(url, options.get("timeout_s", "60"), low=0.1, high=600),
        attempts=int(_number(url, options.get("attempts", "5"), low=1, high=10)),
    )


def _prefix(url: str, path: str) -> str:
    prefix = path.strip("/")
    if not _PREFIX.fullmatch(prefix) or len(prefix) > _MAX_PREFIX_BYTES:
        expected = f"at most {_MAX_PREFIX_BYTES} letters, digits and ._=- in segments that begin with no dot"
        raise StoreError(f"store {url}", "prefix is not one that every store can hold", expected=expected)
    return prefix


def _options(url: str, query: str) -> dict[str, str]:
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    unknown = sorted(set(options) - set(_KNOWN_OPTIONS))
    if unknown:
        known = "some of " + ", ".join(_KNOWN_OPTIONS)
        raise StoreError(f"store {url}", "unknown option in the URL", got=", ".join(unknown), expected=known)
    return options


def _endpoint(url: str, endpoint: str | None) -> str | None:
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise StoreError(f"store {url}", "endpoint is not a plain web address", expected="http(s)://host:port")
    return endpoint


def _number(url: str, text: str, *, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise StoreError(f"store {url}", "option is out of range", got=text, expected=f"{low} to {high}")
    return value
