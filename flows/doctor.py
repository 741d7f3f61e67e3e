"""What this machine has, what it lacks and how to mend it."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from infra.settings import Settings, read_settings
from tasks.errors import RankweaveError

PACKAGES = ("torch", "peft", "transformers", "datasets", "prefect", "mlflow", "boto3")
FREE_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        subject: What.
        healthy: Whether it will do.
        state: What was found.
        remedy: What to do about it; empty when healthy.
    """

    subject: str
    healthy: bool
    state: str
    remedy: str = ""


def examine() -> dict[str, Any]:
    """Look at everything a run needs.

    Returns:
        "healthy", "findings", and "text" to print.
    """
    settings = read_settings()
    checks: tuple[Callable[[Settings], list[Finding]], ...] = (
        _python,
        _packages,
        _compute,
        _home,
        _store,
        _mlflow,
        _prefect,
    )
    findings = [finding for check in checks for finding in check(settings)]
    lines = [f"{'ok  ' if f.healthy else 'MEND'} {f.subject:<14} {f.state}" for f in findings]
    lines += [f"     -> {f.subject}: {f.remedy}" for f in findings if not f.healthy]
    return {
        "healthy": all(f.healthy for f in findings),
        "findings": [vars(f) for f in findings],
        "text": "\n".join(lines),
    }


def _python(_: Settings) -> list[Finding]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return [Finding("python", supported, platform.python_version(), "" if supported else "use Python 3.11 to 3.13")]


def _packages(_: Settings) -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            findings.append(Finding(name, healthy=True, state=version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, healthy=False, state="not installed", remedy="run `make setup`"))
    try:
        fastapi = version("fastapi")
    except PackageNotFoundError:
        return [*findings, Finding("fastapi", healthy=False, state="not installed", remedy="run `make setup`")]
    works = tuple(int(part) for part in fastapi.split(".")[:2]) < (0, 155)
    remedy = "" if works else "pip install 'fastapi<0.155': Prefect's server does not import with newer ones"
    findings.append(Finding("fastapi", works, fastapi, remedy))
    return findings


def _compute(_: Settings) -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("compute", healthy=False, state=f"torch does not import: {error}", remedy="run `make setup`")]
    if torch.cuda.is_available():
        bf16 = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16"
        return [Finding("compute", healthy=True, state=f"{torch.cuda.get_device_name(0)}, {bf16}")]
    return [Finding("compute", healthy=True, state=f"{os.cpu_count()} CPU cores, no GPU")]


def _home(settings: Settings) -> list[Finding]:
    home = settings.home.resolve()
    parent = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        return [
            Finding(
                "home",
                healthy=False,
                state=f"{home} cannot be written",
                remedy="set RANKWEAVE_HOME to a folder that can",
            )
        ]
    free = shutil.disk_usage(parent).free
    remedy = "" if free > FREE_BYTES else "free some disk space or set RANKWEAVE_HOME to another disk"
    return [Finding("home", free > FREE_BYTES, f"{home}, {free / 1e9:.0f} GB free", remedy)]


def _store(settings: Settings) -> list[Finding]:
    try:
        from infra.object_store import open_store

        store = open_store(settings.store_url)
        store.list("runs/doctor/")
        creates = store.capabilities.creates_if_absent
    except (RankweaveError, ImportError) as error:
        return [
            Finding(
                "store", healthy=False, state=str(error), remedy="mend RANKWEAVE_STORE and the credentials it needs"
            )
        ]
    state = "" if creates else ", ignores create-if-absent: the server is the single committer"
    return [Finding("store", healthy=True, state=f"{settings.store_url}{state}")]


def _mlflow(settings: Settings) -> list[Finding]:
    if not settings.tracking_uri:
        return [Finding("mlflow-server", healthy=True, state=f"embedded, {settings.mlflow_uri}")]
    from infra.mlflow_connection import connect, reaching

    try:
        with reaching(settings.mlflow_uri, "looking for experiments"):
            connect(settings.mlflow_uri).search_experiments(max_results=1)
    except RankweaveError as error:
        return [
            Finding("mlflow-server", healthy=False, state=str(error), remedy="start it or mend MLFLOW_TRACKING_URI")
        ]
    return [Finding("mlflow-server", healthy=True, state=settings.mlflow_uri)]


def _prefect(settings: Settings) -> list[Finding]:
    if not settings.prefect_api_url:
        return [Finding("prefect-server", healthy=True, state="embedded in each run")]
    import httpx

    try:
        httpx.get(f"{settings.prefect_api_url.rstrip('/')}/health", timeout=5.0).raise_for_status()
    except httpx.HTTPError as error:
        remedy = "start it with `prefect server start`, or unset PREFECT_API_URL for the embedded one"
        return [Finding("prefect-server", healthy=False, state=f"{settings.prefect_api_url}: {error}", remedy=remedy)]
    return [Finding("prefect-server", healthy=True, state=settings.prefect_api_url)]
