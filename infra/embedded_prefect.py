"""The embedded default of Prefect: a server of one's own for as long as a command runs, UI included.

Prefect can start a temporary server by itself, but that one outlives a killed parent, dies with the first Ctrl-C in a
terminal (it shares the process group, and the run then cannot say how it ended) and shows no pages.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from tasks.errors import ConfigError, RankweaveError

START_S = 120.0
STOP_S = 10.0

# The terminal shows progress and one sentence per error; everything else is on the run's page.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_EMBEDDED = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    # Nobody schedules on a server that lives as long as one command; each service costs a loop over the database.
    "PREFECT_API_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_API_SERVICES_LATE_RUNS_ENABLED": "false",
}


def embed_prefect(home: Path) -> str:
    """Provide a Prefect server for the rest of this process; must be called before anything imports prefect.

    The server ends after Prefect's own handlers at exit, which still send logs and events to it, or when this process
    is gone in any other way.

    Args:
        home: Folder under which the server's database and log live; created.

    Returns:
        The address of its pages: of the server that PREFECT_API_URL names, or of one of our own.

    Raises:
        ConfigError: The home cannot be written, or the server that the environment names does not answer.
        RankweaveError: The server of our own did not start in time.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if named := os.environ.get("PREFECT_API_URL"):
        _check_answers(named)
        return named.removesuffix("/api")
    folder = home.resolve() / "prefect"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"RANKWEAVE_HOME {home}", f"cannot hold state: {error.strerror}", remedy="name a folder that can be written"
        ) from error
    for name, value in {"PREFECT_HOME": str(folder), **_EMBEDDED}.items():
        os.environ.setdefault(name, value)
    address, log = f"http://127.0.0.1:{_free_port()}", folder / "server.log"
    process = _start(address, log)
    atexit.register(_stop, process)
    _wait(process, address, log)
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    return address


def _start(address: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PREFECT_API_URL": f"{address}/api", "PREFECT_UI_API_URL": f"{address}/api"}
    command = [sys.executable, "-m", "infra.embedded_prefect", address.rpartition(":")[2]]
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  # our own module, by the interpreter that runs us
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    import httpx

    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{address}/api/health", timeout=5.0).is_success:
                return
        time.sleep(0.05)
    problem = "ended while starting" if process.poll() is not None else f"did not answer within {START_S:.0f} s"
    raise RankweaveError("embedded Prefect server", problem, remedy=f"see {log}, or set PREFECT_API_URL to a server")


def _check_answers(api_url: str) -> None:
    import httpx

    try:
        httpx.get(f"{api_url.rstrip('/')}/health", timeout=10.0).raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigError(
            f"PREFECT_API_URL {api_url}",
            f"does not answer: {error}",
            remedy="start that server, or unset the variable for a server of the run's own",
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(port: int) -> None:
    """Serve Prefect on a loopback port until the process at the other end of standard input is gone.

    Args:
        port: Where to listen.
    """
    import uvicorn

    def end_with_parent() -> None:
        sys.stdin.read()  # returns when the parent's end of the pipe is closed, whichever way the parent ended
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
