"""How Rankweave's flows and tasks use Prefect: the one way tasks are retried, and what a run need not pay for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.errors import RankweaveError, is_transient

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task


T = TypeVar("T")
RETRY_DELAYS_S = (1, 5, 20)


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
        "retries": len(RETRY_DELAYS_S),
        "retry_delay_seconds": list(RETRY_DELAYS_S),
        "retry_condition_fn": only_transient,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }


def retry_transient(work: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Do some work outside Prefect under the rule that tasks are retried by.

    Args:
        work: What to do.
        sleep: Waits so many seconds [s].

    Returns:
        What the work returns.
    """
    for delay_s in RETRY_DELAYS_S:
        try:
            return work()
        except RankweaveError as error:
            if not is_transient(error):
                raise
            sleep(delay_s)
    return work()


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
