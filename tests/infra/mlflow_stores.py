"""Real MLflow stores for tests: SQLite files, and a server process on loopback."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from infra.mlflow_connection import connect

START_DEADLINE_S = 150.0


def fresh_store(factory, name: str) -> str:
    """Return the address of an empty store of its own; the slow first migration is done once a session."""
    template = factory.getbasetemp() / "mlflow-template.db"
    if not template.exists():
        connect(f"sqlite:///{template}").search_experiments()
    database = factory.mktemp(name) / "mlflow.db"
    shutil.copyfile(template, database)
    return f"sqlite:///{database}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(backend: str, folder: Path) -> Iterator[str]:
    """Run `mlflow server` and stop it afterwards."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", backend]
    options += ["--artifacts-destination", str(folder / "served")]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        try:
            wait_until_healthy(address, process, folder / "server.log")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=20)


def wait_until_healthy(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            if urllib.request.urlopen(f"{address}/health", timeout=2).status == 200:  # noqa: S310 - loopback
                return
        time.sleep(0.2)
    raise TimeoutError(f"mlflow server did not start: {log.read_text()[-2000:]}")
