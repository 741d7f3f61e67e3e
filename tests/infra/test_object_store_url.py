"""URLs of stores: what opens what, what is refused and how, and that opening again is cheap."""

import time
from pathlib import Path

import pytest

from infra.directory_store import DirectoryStore
from infra.object_store import open_store
from infra.s3_client import is_aws, s3_client, transfers
from infra.store_url import parse_s3_url
from tasks.errors import StoreError
from tests.servers import Keys


@pytest.fixture(autouse=True)
def _only_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in Keys("key", "secret").environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def test_folder_and_file_url_open_the_same_store(tmp_path: Path) -> None:
    named, addressed = open_store(str(tmp_path / "a b")), open_store(f"file://{tmp_path}/a%20b")
    assert isinstance(named, DirectoryStore)
    named.put("x", b"1")
    assert addressed.get("x") == b"1"


def test_opening_a_folder_writes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert store.list("") == []
    assert store.size("a/b") is None
    assert list(tmp_path.iterdir()) == []


def test_s3_url_is_taken_apart() -> None:
    location = parse_s3_url("s3://bucket/team/one/?endpoint=http://127.0.0.1:9000&region=eu-1&timeout_s=2&attempts=1")
    assert (location.bucket, location.prefix) == ("bucket", "team/one")
    assert (location.endpoint, location.region) == ("http://127.0.0.1:9000", "eu-1")
    assert (location.timeout_s, location.attempts) == (2.0, 1)


def test_endpoint_of_the_url_outranks_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:1")
    assert parse_s3_url("s3://bucket").endpoint == "http://general:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://special:2")
    assert parse_s3_url("s3://bucket").endpoint == "http://special:2"
    assert parse_s3_url("s3://bucket?endpoint=http://named:3").endpoint == "http://named:3"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the URL is empty"),
        ("ftp://host/x", r"unknown scheme; got ftp://; expected a folder, file:// or s3://"),
        ("memory://", "unknown scheme"),
        ("file://elsewhere/x", "names no folder of this machine"),
        ("s3://", "names no usable bucket"),
        ("s3://b/x", "names no usable bucket"),
        ("s3://bucket/a/../b", "prefix is not one"),
        ("s3://bucket/a//b", "prefix is not one"),
        ("s3://bucket?endpoit=http://h", "unknown option in the URL; got endpoit; expected some of attempts, endpoint"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint is not a plain web address"),
        ("s3://bucket?timeout_s=soon", "option is out of range; got soon"),
        ("s3://bucket?timeout_s=nan", "option is out of range"),
        ("s3://bucket?attempts=0", "option is out of range; got 0"),
    ],
)
def test_unusable_url_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hush@bucket/x",
        "s3://bucket?endpoint=http://key:hush@host",
        "s3://bucket?endpoint=http%3A//key:hush%40host",
    ],
)
def test_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreError) as refused:
        open_store(url)
    assert "hush" not in str(refused.value)


def test_missing_profile_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="nobody"):
        open_store("s3://bucket/profile?endpoint=http://127.0.0.1:9")


def test_missing_credentials_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store("s3://bucket/nobody?endpoint=http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"no credentials for the store.*AWS_ACCESS_KEY_ID"):
        store.get("a/b")


def test_opening_again_is_cheap() -> None:
    url = "s3://bucket/again?endpoint=http://127.0.0.1:9"
    first = open_store(url)
    began = time.perf_counter()
    assert all(open_store(url) is first for _ in range(1000))
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    ("endpoint", "amazon"),
    [
        (None, True),
        ("https://s3.eu-central-1.amazonaws.com", True),
        ("https://s3.cn-north-1.amazonaws.com.cn", True),
        ("http://127.0.0.1:9000", False),
        ("https://amazonaws.com.example.org", False),
    ],
)
def test_amazon_is_told_from_the_others(endpoint: str | None, amazon: bool) -> None:
    assert is_aws(endpoint) is amazon


@pytest.mark.parametrize(
    ("url", "style", "checksums"),
    [
        ("s3://bucket?region=eu-west-1", "virtual", "when_supported"),
        ("s3://bucket?endpoint=http://127.0.0.1:9", "path", "when_required"),
    ],
)
def test_client_settings_fit_the_server(url: str, style: str, checksums: str) -> None:
    config = s3_client(parse_s3_url(url)).meta.config
    assert config.s3["addressing_style"] == style
    assert config.request_checksum_calculation == config.response_checksum_validation == checksums
    assert config.retries == {"mode": "standard", "total_max_attempts": 5}


def test_large_transfers_never_take_the_client_that_drops_the_endpoint() -> None:
    assert transfers().preferred_transfer_client == "classic"


def test_upload_ticket_for_amazon_signs_what_makes_it_exact() -> None:
    ticket = open_store("s3://bucket/x?region=eu-west-1").presign_put(
        "a/b", length=5, md5_base64="XUFAKrxLKna5cZ2REBfFkg==", expires_s=60
    )
    assert ticket.url.startswith("https://bucket.s3.eu-west-1.amazonaws.com/x/a/b?")
    assert "X-Amz-SignedHeaders=content-length%3Bcontent-md5%3Bhost%3Bif-none-match" in ticket.url
    assert "checksum" not in ticket.url
