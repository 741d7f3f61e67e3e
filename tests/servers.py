"""Real S3 server processes for tests, on loopback, each with its own port, data folder and keys.

A server can be killed as a power cut would and started again on the same data. Every wait has a deadline.
"""

import configparser
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import boto3
from botocore.config import Config

BUCKET = "rankweave-tests"
_LAUNCHER = Path(__file__).parent.parent / "infra" / "ceph_rgw.sh"
_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Keys:
    """One identity of a server."""

    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """What boto3's own chain has to find, and nothing of this machine's."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass
class S3Server:
    """A server process and how to start it again."""

    name: str
    port: int
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    keys: Keys
    provision: Callable[["S3Server"], Keys] = field(default=lambda server: server.keys)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, prefix: str, *, bucket: str = BUCKET, timeout_s: float = 20, attempts: int = 3) -> str:
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&timeout_s={timeout_s}&attempts={attempts}"

    def start(self) -> "S3Server":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait_until_answers(self)
        self.keys = self.provision(self)
        return self

    def kill(self) -> None:
        """End the whole process group at once, as a power cut would."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        group = process.pid  # it leads its own session, so its id is the group's
        try:
            os.killpg(group, number)
            process.wait(timeout=15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        finally:
            _end_group(group)
            process.wait(timeout=15)

    def client(self, service: str, keys: Keys) -> Any:
        return boto3.Session().client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )


def start_ministack(folder: Path) -> S3Server:
    """MiniStack with signatures checked: the fast one, of every test run."""
    root = Keys("AKIA" + secrets.token_hex(8).upper(), secrets.token_hex(20))
    port = free_port()
    settings = {
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3,iam,sts",
        "AUTH": "true",
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(folder / "s3"),
        "PERSIST_STATE": "1",
        "STATE_DIR": str(folder / "state"),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
    }
    command = [_installed("ministack")]
    environment = {**root.environment(), **settings}
    server = S3Server("ministack", port, command, environment, folder / "server.log", root)
    server.provision = lambda running: _ministack_user(running, root)
    return server.start()


def _ministack_user(server: S3Server, root: Keys) -> Keys:
    """Make a bucket and a user. The root key's signature is not checked by MiniStack; a user's is.

    Users do not survive `kill -9` there, so each start makes a new one.
    """
    user = "tests-" + secrets.token_hex(4)
    iam = server.client("iam", root)
    iam.create_user(UserName=user)
    policy = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'
    iam.put_user_policy(UserName=user, PolicyName="all", PolicyDocument=policy)
    made = iam.create_access_key(UserName=user)["AccessKey"]
    _make_bucket(server, root)
    return Keys(made["AccessKeyId"], made["SecretAccessKey"])


def start_rclone(folder: Path) -> S3Server:
    """`rclone serve s3`: a sound server that silently ignores every condition."""
    keys = Keys(secrets.token_hex(10), secrets.token_hex(20))
    (folder / "data" / BUCKET).mkdir(parents=True)
    port = free_port()
    command = [_installed("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{keys.access_key},{keys.secret_key}", str(folder / "data")]
    environment = {"RCLONE_CONFIG": str(folder / "rclone.conf")}
    return S3Server("rclone", port, command, environment, folder / "server.log", keys).start()


def start_ceph(folder: Path) -> S3Server:
    """Ceph's RADOS Gateway, fetched from Debian when it is not there yet."""
    port = free_port(run=3)
    script = ["bash", str(_LAUNCHER)]
    with (folder / "server.log").open("ab") as log:
        subprocess.run([*script, "fetch"], check=True, timeout=240, stdout=log, stderr=log)
        subprocess.run([*script, "init", str(folder), str(port)], check=True, timeout=180, stdout=log, stderr=log)
    credentials = configparser.ConfigParser()
    credentials.read(folder / "credentials")
    section = credentials["default"]
    keys = Keys(section["aws_access_key_id"], section["aws_secret_access_key"])
    command = [*script, "run", str(folder), str(port)]
    server = S3Server("ceph", port, command, {}, folder / "server.log", keys)
    server.provision = lambda running: _make_bucket(running, keys)
    return server.start()


def _make_bucket(server: S3Server, keys: Keys) -> Keys:
    s3 = server.client("s3", keys)
    held = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    if BUCKET not in held:
        s3.create_bucket(Bucket=BUCKET)
    return keys


def stranger(server: S3Server) -> S3Server:
    """The same server, addressed with the right key and a wrong secret."""
    return replace(server, keys=Keys(server.keys.access_key, "wrong" * 8), process=None)


def free_port(*, run: int = 1) -> int:
    """Find a port on loopback such that it and those after it are free now."""
    for _ in range(50):
        held = []
        try:
            held.append(_bound(0))
            port = held[0].getsockname()[1]
            held += [_bound(port + offset) for offset in range(1, run)]
        except (OSError, OverflowError):
            continue
        else:
            return port
        finally:
            for taken in held:
                taken.close()
    raise RuntimeError(f"no {run} free ports in a row on loopback")


def _bound(port: int) -> socket.socket:
    taken = socket.socket()
    try:
        taken.bind(("127.0.0.1", port))
    except (OSError, OverflowError):
        taken.close()
        raise
    return taken


def _installed(program: str) -> str:
    """Find a program beside this Python, where the development dependencies put it, or on the path."""
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if not found:
        raise RuntimeError(f"{program} is not installed: run `make setup`")
    return found


def _wait_until_answers(server: S3Server) -> None:
    """Wait until the server answers anything over HTTP; fail with its log when it ends or takes too long."""
    opener = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline and server.process and server.process.poll() is None:
        try:
            opener.open(server.endpoint, timeout=2).close()
        except HTTPError as answer:
            answer.close()
        except (URLError, OSError):
            time.sleep(0.05)  # between two looks; the deadline ends it
            continue
        return
    log = server.log.read_text(errors="replace")[-4000:]
    server.kill()
    raise RuntimeError(f"{server.name} did not answer within {_DEADLINE_S:.0f} s; its log ends:\n{log}")


def _end_group(group: int) -> None:
    """Kill what is left of a process group and wait until it is gone, so that its port and files are free."""
    # Orphans that nobody reaps count as members for ever, hence the short patience.
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.02)  # between two looks; the deadline ends it
