"""One client's part in one round: the same code in the server's process and on a work pool."""

import logging
import time
from collections.abc import Callable
from functools import partial

from prefect import flow

from configs.loading import parse_config
from configs.workbench import Workbench
from infra.engine import retry_transient
from infra.metered_store import Meter, MeteredStore
from infra.object_store import ObjectStore, open_store
from infra.run_store import read_run
from infra.settings import read_settings
from tasks.errors import DeadlineExceededError, RankweaveError, StoreError
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import UpdateManifest
from tasks.rounds.steps import Ticket
from tasks.train_client import report_failure, train_client
from tasks.training.spec import limited_threads

ShouldStop = Callable[[], RankweaveError | None]


@flow(name="client-update", flow_run_name="{client_id}-round-{round_index:03d}-attempt-{attempt}", persist_result=False)
def client_update(run_id: str, round_index: int, client_id: str, attempt: int = 1) -> str:
    """Train one client for one round and upload its update.

    Args:
        run_id: The federated run.
        round_index: The round.
        client_id: Who trains.
        attempt: Which try, from 1.

    Returns:
        SHA-256 of the committed update.

    Raises:
        RunNotFoundError: This machine's store holds no such run.
        DeadlineExceededError: The round was closed before this run began, or training took too long.
    """
    store_url, meter = read_settings().store_url, Meter()
    store, round_keys = MeteredStore(open_store(store_url), meter), RoundKeys(run_id, round_index)
    config = parse_config(read_run(store, run_id).config, f"run {run_id}")
    _refuse_closed_round(store, round_keys, client_id)
    work = partial(
        train_client,
        store_url,
        run_id,
        round_index=round_index,
        client_id=client_id,
        attempt=attempt,
        bench=Workbench(config),
        should_stop=until(config.cohort.deadline_s),
        meter=meter,
    )
    report = partial(report_failure, store, round_keys, client_id=client_id, attempt=attempt, meter=meter)
    with limited_threads(config.training.cpu_threads):
        outcome = _work_and_report(work, report, client_id)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.update_sha256


def run_client(
    store_url: str, run_id: str, round_index: int, ticket: Ticket, *, bench: Workbench, should_stop: ShouldStop
) -> None:
    """Run one client in this process, as a plain call: Prefect's price per run is not paid per client.

    Whatever goes wrong on a client stays on that client.

    Args:
        store_url: Where adapters are exchanged.
        run_id: The run.
        round_index: The round.
        ticket: Who, and which try.
        bench: Data and base model, shared by all clients of this process.
        should_stop: Asked at every step.
    """
    meter, round_keys = Meter(), RoundKeys(run_id, round_index)
    work = partial(
        train_client.fn,
        store_url,
        run_id,
        round_index=round_index,
        client_id=ticket.client_id,
        attempt=ticket.attempt,
        bench=bench,
        should_stop=should_stop,
        meter=meter,
    )
    store, client, attempt = open_store(store_url), ticket.client_id, ticket.attempt
    report = partial(report_failure, store, round_keys, client_id=client, attempt=attempt, meter=meter)
    _work_and_report(partial(retry_transient, work), report, client)


def _work_and_report(
    work: Callable[[], UpdateManifest], report: Callable[..., None], client_id: str
) -> UpdateManifest | Exception:
    """Do a client's work; what goes wrong is written down as a failure that the server reads, and returned."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  # a client's run boundary: the one place where anything is caught
        try:
            report(error=error)
        except StoreError as silence:
            # Then the server counts the client as missing; the other clients of this process go on.
            logging.getLogger(__name__).warning("client %s failed, and could not say so: %s", client_id, silence)
        return error


def _refuse_closed_round(store: ObjectStore, round_keys: RoundKeys, client_id: str) -> None:
    """A run that waited in its pool's queue until the round was over would train for nothing."""
    if store.size(round_keys.collection) is not None:
        raise DeadlineExceededError(
            f"client {client_id}, round {round_keys.round_index}",
            "the round was closed before this run began",
            remedy="raise cohort.deadline_s, or let the work pool run more at once",
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
