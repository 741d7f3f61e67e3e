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
from tasks.errors import DeadlineExceededError, RankweaveError
from tasks.rounds.records import RoundPlan
from tasks.rounds.steps import Ticket
from tasks.rounds.summary import RunHandle

if TYPE_CHECKING:
    from uuid import UUID


class Inline:
    """Clients in this process, on a few daemon threads: no Prefect run, no process and no copy of the base each.

    Daemon threads, because a client that hangs must neither hang the round nor the exit of the process.

    Args:
        tickets: What to run.
        run_one: Runs one client; called with a ticket and a function that says whether to stop.
        workers: Clients at once.
    """

    def __init__(self, tickets: Sequence[Ticket], run_one: Callable[..., None], *, workers: int) -> None:
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
            return self._unfinished > 0

    def stop(self) -> None:
        """Ask clients to stop at their next step."""
        self._stopped.set()

    def _work(self) -> None:
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
    """

    def __init__(self, run: RunHandle, plan: RoundPlan, tickets: Sequence[Ticket], *, deployment: str) -> None:
        from prefect.deployments import run_deployment

        self._flow_runs: list[UUID] = []
        for ticket in tickets:
            name = f"{ticket.client_id}-round-{plan.round_index:03d}-attempt-{ticket.attempt}"
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
                idempotency_key=f"{run.run_id}-{name}",
                tags=["rankweave", run.run_id, f"client:{ticket.client_id}"],
            )
            self._flow_runs.append(flow_run.id)

    def wait(self, timeout_s: float) -> None:
        """Sleep for the timeout [s]; uploads are noticed by looking."""
        time.sleep(timeout_s)

    def is_running(self) -> bool:
        """Tell whether any of the runs has not ended."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        if not self._flow_runs:
            return False
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=self._flow_runs)))
        return any(run.state is None or not run.state.is_final() for run in runs)

    def stop(self) -> None:
        """Leave the runs alone: a late update is recorded, and a pool's slot is freed by the run's own timeout."""


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

    return Inline(tickets, run_one, workers=config.inline_workers)
