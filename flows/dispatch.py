"""How client runs are started: in this process, on Prefect work pools, or by the sites themselves.

Each way answers to `tasks.collect_updates.Dispatched`, so the round does not know which one it waits for.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from configs.workbench import Workbench
from flows.client_update import run_client
from tasks.errors import ConfigError, DeadlineExceededError, RankweaveError
from tasks.rounds.records import RoundPlan
from tasks.rounds.steps import Ticket
from tasks.rounds.summary import RunHandle
from tasks.training.spec import keep_to_threads

if TYPE_CHECKING:
    from uuid import UUID

ASK_S = 5.0
ANSWER_S = 10.0


class Inline:
    """Clients in this process, on a few daemon threads: no Prefect run, no process and no copy of the base each.

    Daemon threads, because a client that hangs must neither hang the round nor the exit of the process.

    Args:
        tickets: What to run.
        run_one: Runs one client; called with a ticket and a function that says whether to stop.
        workers: Clients at once.
        cpu_threads: Threads of torch for each of them; 0 leaves them as they are.
    """

    def __init__(
        self, tickets: Sequence[Ticket], run_one: Callable[..., None], *, workers: int, cpu_threads: int = 0
    ) -> None:
        self._cpu_threads = cpu_threads
        self._stopped = threading.Event()
        self._news = threading.Condition()
        self._unfinished = len(tickets)
        self._todo: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        for ticket in tickets:
            self._todo.put(ticket)
        self._run_one = run_one
        for number in range(min(workers, len(tickets))):
            threading.Thread(target=self._work, name=f"client-{number}", daemon=True).start()

    def wait(self, timeout_s: float) -> None:
        """Return when a client has finished, or after the timeout [s]."""
        with self._news:
            if self._unfinished:
                self._news.wait(timeout_s)

    def is_running(self) -> bool:
        """Tell whether a client is still to finish."""
        with self._news:
            return self._unfinished > 0 and not self._stopped.is_set()

    def stop(self) -> None:
        """Ask clients to stop at their next step."""
        self._stopped.set()

    def _work(self) -> None:
        keep_to_threads(self._cpu_threads)
        while not self._stopped.is_set():
            try:
                ticket = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._run_one(ticket, self._should_stop)
            finally:
                with self._news:
                    self._unfinished -= 1
                    self._news.notify_all()

    def _should_stop(self) -> RankweaveError | None:
        if not self._stopped.is_set():
            return None
        return DeadlineExceededError("client training", "the round was closed without this client")


class Pools:
    """One `client-update` run each on a Prefect work pool.

    Args:
        run: The run.
        plan: The round's plan.
        tickets: What to run.
        deployment: "flow/deployment" that runs a client.
        clock: Monotonic clock [s].

    Raises:
        ConfigError: There is no such deployment.
    """

    def __init__(
        self,
        run: RunHandle,
        plan: RoundPlan,
        tickets: Sequence[Ticket],
        *,
        deployment: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._asked_at = clock, clock()
        self._flow_runs = [_start_on_pool(run, plan, ticket, deployment) for ticket in tickets]
        self._running = bool(self._flow_runs)

    def wait(self, timeout_s: float) -> None:
        """Sleep for the timeout [s]; uploads are noticed by looking."""
        time.sleep(timeout_s)

    def is_running(self) -> bool:
        """Tell whether any of the runs has not ended, from an answer at most `ASK_S` old.

        Updates are noticed in the store; Prefect is only asked for runs that end without a word.
        """
        if self._running and self._clock() - self._asked_at >= ASK_S:
            self._running = _any_unfinished(self._flow_runs)
            self._asked_at = self._clock()
        return self._running

    def stop(self) -> None:
        """Leave the runs alone: one under way ends by itself, one that begins after its round refuses to train."""


def _start_on_pool(run: RunHandle, plan: RoundPlan, ticket: Ticket, deployment: str) -> "UUID":
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound
    from prefect.runtime import flow_run as flow_run_context

    name = f"{ticket.client_id}-round-{plan.round_index:03d}-attempt-{ticket.attempt}"
    try:
        flow_run = run_deployment(
            deployment,
            parameters={
                "run_id": run.run_id,
                "round_index": plan.round_index,
                "client_id": ticket.client_id,
                "attempt": ticket.attempt,
            },
            timeout=0,  # created, not waited for: the round waits for updates, not for runs
            flow_run_name=name,
            # The same try of this round makes one run; a resumed round makes a new one, for the old one may be dead.
            idempotency_key=f"{flow_run_context.id}-{name}",
            tags=["rankweave", run.run_id, f"client:{ticket.client_id}"],
        )
    except ObjectNotFound as error:
        raise ConfigError(
            f"dispatch.deployment: {deployment}",
            "the Prefect server has no such deployment",
            remedy="create it with `prefect deploy --all --prefect-file infra/prefect.yaml`, or name another",
        ) from error
    return flow_run.id  # pyright: ignore[reportAttributeAccessIssue]  # sync here, never awaited


def _any_unfinished(flow_runs: list["UUID"]) -> bool:
    """Ask Prefect once, for one number, whatever the cohort; no answer in time means that runs may still go on."""
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import TERMINAL_STATES
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    unfinished = FlowRunFilter(
        id=FlowRunFilterId(any_=flow_runs),
        state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=sorted(TERMINAL_STATES))),
    )
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": ANSWER_S}) as client,
        ):
            return client.count_flow_runs(flow_run_filter=unfinished) > 0
    except HTTPError:
        return True  # the round's deadline still holds


class External:
    """Sites start their own `client-update` runs; the round only waits."""

    def wait(self, timeout_s: float) -> None:
        """Sleep for the timeout [s]."""
        time.sleep(timeout_s)

    def is_running(self) -> bool:
        """Tell that more may always come until the deadline."""
        return True

    def stop(self) -> None:
        """Nothing here to stop."""


def dispatch_clients(
    run: RunHandle, plan: RoundPlan, tickets: Sequence[Ticket], bench: Workbench
) -> Inline | Pools | External:
    """Start the clients of a round, the way the config says.

    Args:
        run: The run.
        plan: The round's plan.
        tickets: Clients that still have to train.
        bench: The run's data and model, for clients in this process.
    """
    config = bench.config.dispatch
    if config.mode == "pools":
        return Pools(run, plan, tickets, deployment=config.deployment)
    if config.mode == "external":
        return External()

    def run_one(ticket: Ticket, should_stop: Callable[[], RankweaveError | None]) -> None:
        run_client(run.store_url, run.run_id, plan.round_index, ticket, bench=bench, should_stop=should_stop)

    return Inline(tickets, run_one, workers=config.inline_workers, cpu_threads=bench.config.training.cpu_threads)
