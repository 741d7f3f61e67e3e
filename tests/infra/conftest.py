"""Real stores for the tests of `infra`: folders and server processes, one of each kind per session."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.object_store import ObjectStore, open_store
from tests.servers import S3Server, start_ceph, start_ministack, start_rclone

_STARTERS: dict[str, Callable[[Path], S3Server]] = {
    "ministack": start_ministack,
    "rclone": start_rclone,
    "ceph": start_ceph,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave Ceph to those who ask for it: it is fetched from the network and takes half a minute to set up."""
    if "s3_real" in (config.getoption("markexpr") or ""):
        return
    skip = pytest.mark.skip(reason="needs Ceph's RADOS Gateway: run `make test-s3-real`")
    for item in items:
        if item.get_closest_marker("s3_real"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], S3Server]]:
    """Give the session's server of a kind, started on first use."""
    running: dict[str, S3Server] = {}

    def server(kind: str) -> S3Server:
        if kind not in running:
            running[kind] = _STARTERS[kind](tmp_path_factory.mktemp(kind))
        return running[kind]

    yield server
    for started in running.values():
        started.stop()


@pytest.fixture
def open_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Server, str], ObjectStore]:
    """Open a URL with a server's keys in the environment, as a user would."""

    def opened(server: S3Server, url: str) -> ObjectStore:
        for name, value in server.keys.environment().items():
            monkeypatch.setenv(name, value)
        return open_store(url)

    return opened


@pytest.fixture
def fresh_store(
    server_of: Callable[[str], S3Server], open_as: Callable[[S3Server, str], ObjectStore], tmp_path: Path
) -> Iterator[Callable[[str], ObjectStore]]:
    """Open an empty store of a kind, and empty it afterwards.

    All tests of a session open the same URL: making a client and probing cost more than most tests do.
    """
    opened: list[ObjectStore] = []

    def fresh(kind: str) -> ObjectStore:
        if kind == "directory":
            return open_store(str(tmp_path / "store"))
        server = server_of(kind)
        opened.append(open_as(server, server.url("contract")))
        return opened[-1]

    yield fresh
    for store in opened:
        for info in store.list(""):
            store.delete(info.key)
