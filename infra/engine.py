"""How Rankweave uses Prefect: the embedded server, and the one way tasks are retried.

`embed_prefect` must run before anything imports prefect, which reads its environment once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import is_transient

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

_EMBEDDED = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    # Nobody watches an embedded server's services; each costs a loop over the database.
    "PREFECT_API_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_API_SERVICES_LATE_RUNS_ENABLED": "false",
}


def embed_prefect(home: Path) -> None:
    """Point Prefect at a server inside this process, unless the environment names one.

    Args:
        home: Folder under which its database lives; created.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if os.environ.get("PREFECT_API_URL"):
        return
    folder = home.resolve() / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(folder))
    for name, value in _EMBEDDED.items():
        os.environ.setdefault(name, value)


def only_transient(task: "Task[..., Any]", run: "TaskRun", state: "State[Any]") -> bool:
    """Retry condition of every task: try again only what may go away by itself."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def task_options() -> dict[str, Any]:
    """Options that every verb's `@task` takes: bounded retries of transient errors, no hidden caching.

    Caching is off because the object store is the cache: a finished step is found there and adopted.
    """
    from prefect.cache_policies import NO_CACHE

    return {
        "retries": 3,
        "retry_delay_seconds": [1, 5, 20],
        "retry_condition_fn": only_transient,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }


@contextmanager
def one_heartbeat() -> Iterator[None]:
    """Let a run's own heartbeat speak for its rounds.

    A round is a subflow in the same process. A heartbeat thread for each would say nothing new, and ending one costs up
    to a second.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@contextmanager
def untagged_tasks() -> Iterator[None]:
    """Keep a flow's tags from its tasks: Prefect asks its server for a concurrency limit on every tag of every task."""
    from prefect.context import TagsContext

    with TagsContext(current_tags=set()):
        yield


def name_this_flow_run(name: str, tags: set[str]) -> None:
    """Give the flow run that calls this its name and tags, known only once it runs.

    Args:
        name: What its page is called.
        tags: What it can be found by.
    """
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, name=name, tags=tags | set(flow_run.tags))
