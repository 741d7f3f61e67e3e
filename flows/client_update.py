"""One client's part in one round: the same code in the server's process and on a work pool."""

import time
from collections.abc import Callable

from prefect import flow

from configs.loading import parse_config
from configs.workbench import Workbench
from infra.object_store import open_store
from infra.run_store import read_run
from infra.settings import read_settings
from tasks.errors import DeadlineExceededError, RankweaveError
from tasks.rounds.keys import RoundKeys
from tasks.rounds.steps import Ticket
from tasks.train_client import report_failure, train_client

ShouldStop = Callable[[], RankweaveError | None]


@flow(name="client-update", flow_run_name="{client_id}-round-{round_index}-attempt-{attempt}")
def client_update(run_id: str, round_index: int, client_id: str, attempt: int = 1) -> str:
    """Train one client for one round and upload its update.

    Args:
        run_id: The federated run.
        round_index: The round.
        client_id: Who trains.
        attempt: Which try, from 1.

    Returns:
        SHA-256 of the committed update.
    """
    store_url = read_settings().store_url
    spec = read_run(open_store(store_url), run_id)
    config = parse_config(spec.config, f"run {run_id}")
    manifest = train_client(
        store_url,
        run_id,
        round_index=round_index,
        client_id=client_id,
        attempt=attempt,
        bench=Workbench(config),
        should_stop=until(config.cohort.deadline_s),
    )
    return manifest.update_sha256


def run_client(
    store_url: str, run_id: str, round_index: int, ticket: Ticket, *, bench: Workbench, should_stop: ShouldStop
) -> None:
    """Run one client in this process, as a plain call: Prefect's price per run is not paid per client.

    Whatever goes wrong on a client stays on that client: it is written down as a failure that the server reads.

    Args:
        store_url: Where adapters are exchanged.
        run_id: The run.
        round_index: The round.
        ticket: Who, and which try.
        bench: Data and base model, shared by all clients of this process.
        should_stop: Asked at every step.
    """
    try:
        train_client.fn(
            store_url,
            run_id,
            round_index=round_index,
            client_id=ticket.client_id,
            attempt=ticket.attempt,
            bench=bench,
            should_stop=should_stop,
        )
    except Exception as error:  # noqa: BLE001  # a client's run boundary: the one place where anything is caught
        report_failure(
            open_store(store_url),
            RoundKeys(run_id, round_index),
            client_id=ticket.client_id,
            attempt=ticket.attempt,
            error=error,
        )


def until(deadline_s: float, clock: Callable[[], float] = time.monotonic) -> ShouldStop:
    """Build a `should_stop` that ends training after a time.

    Args:
        deadline_s: From now [s].
        clock: Monotonic clock [s].
    """
    end = clock() + deadline_s

    def stop() -> RankweaveError | None:
        if clock() < end:
            return None
        return DeadlineExceededError(
            "client training", f"did not end within {deadline_s} s", remedy="train less or raise cohort.deadline_s"
        )

    return stop
