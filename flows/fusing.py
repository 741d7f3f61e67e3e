"""After a run with personal adapters: every client on this machine joins its own with the global one."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from configs.loading import parse_config
from configs.workbench import Workbench
from infra.engine import retry_transient
from infra.object_store import open_store
from infra.private_state import PrivateState
from infra.run_store import read_records, read_run
from infra.settings import read_settings
from tasks.errors import ConfigError, RunNotFoundError
from tasks.fuse_adapters import fuse_adapters
from tasks.local_work import PERSONAL
from tasks.rounds.records import FusionReport


def fuse_here(store_url: str, run_id: str, bench: Workbench, clients: Sequence[str]) -> list[FusionReport]:
    """Fuse for every client that keeps a personal adapter on this machine.

    Args:
        store_url: Where the global adapter lies.
        run_id: The run.
        bench: The clients' data and base model.
        clients: Whom to look for.

    Returns:
        One report per client found.
    """
    home = read_settings().home
    rounds = len(read_records(open_store(store_url), run_id))
    here = [client for client in clients if PrivateState(home, run_id, client).latest(PERSONAL, rounds) is not None]
    return [
        retry_transient(partial(fuse_adapters.fn, store_url, run_id, client_id=client, bench=bench)) for client in here
    ]


def fuse_run(run_id: str, clients: Sequence[str]) -> dict[str, Any]:
    """Fuse a finished run's adapters for clients of this machine.

    Args:
        run_id: The run.
        clients: Whom; empty for all that have a personal adapter here.

    Returns:
        The reports' fields by client, and "text" to print.

    Raises:
        ConfigError: The run trained no personal adapters.
        RunNotFoundError: No such run, or no personal adapter of it on this machine.
    """
    store_url = read_settings().store_url
    config = parse_config(read_run(open_store(store_url), run_id).config, f"run {run_id}")
    if not config.training.keeps_personal:
        raise ConfigError(
            f"run {run_id}", "trained no personal adapters", remedy="add fdlora to training.local_methods in a new run"
        )
    bench = Workbench(config)
    reports = fuse_here(store_url, run_id, bench, list(clients) or bench.clients)
    if not reports:
        raise RunNotFoundError(
            f"run {run_id}", "left no personal adapter on this machine", remedy="fuse where the clients trained"
        )
    lines = [_line(report, config.metric) for report in reports]
    return {"clients": {r.client_id: r.metrics for r in reports}, "text": "\n".join(lines)}


def _line(report: FusionReport, metric: str) -> str:
    sides = ", ".join(f"{side} {report.metrics[f'{side}_{metric}']:.4f}" for side in ("personal", "shared", "fused"))
    weights = f"{report.personal_weight:.3f} of its own, {report.shared_weight:.3f} of the global adapter"
    return f"{report.client_id}: {metric} {sides}; weights {weights}"
