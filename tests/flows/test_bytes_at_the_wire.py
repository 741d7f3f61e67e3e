"""The ledger against the wire: a proxy before a real S3 server counts bodies, and both agree to the byte.

Counted are bodies of PUT requests and of GET answers with status 200, for objects of the run. Away from AWS boto3
sends plain bodies (`infra.s3_client`); a chunked one with a trailing checksum would count at what it decodes to.
Headers, HEAD requests, listings, error bodies and the probe of what the store honours are no part of the bill.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from flows.client_update import client_update, run_client
from infra.engine import retry_transient
from infra.object_store import open_store
from infra.run_store import commit_record
from tasks.errors import DeadlineExceededError
from tasks.rounds import keys
from tasks.rounds.ledger import LedgerLine
from tasks.rounds.records import RunSpec
from tasks.rounds.steps import Ticket
from tests.flaky_proxy import FlakyProxy, flaky_proxy
from tests.flows.closing import closed
from tests.flows.staged import RUN_ID, Staged, stage_round
from tests.flows.told import FLORA
from tests.servers import BUCKET, S3Server, start_ministack

TWO = ("data.partition.num_clients=2", "cohort.quorum=1", "ranks.client_fractions=[0.25, 1.0]")
METHODS = {"rbla": TWO, "flora": (*FLORA, *TWO)}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[S3Server]:
    started = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield started
    started.stop()


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[FlakyProxy]:
    for name, value in server.keys.environment().items():
        monkeypatch.setenv(name, value)
    with flaky_proxy(f"127.0.0.1:{server.port}") as flaky:
        yield flaky


@pytest.fixture
def at_once(monkeypatch):
    """Tries are repeated without the pause between them."""
    monkeypatch.setattr("flows.client_update.retry_transient", partial(retry_transient, sleep=lambda _: None))


def staged_in(server: S3Server, prefix: str, *overrides: str) -> Staged:
    """The server's side of a round: it speaks to the store without the proxy."""
    return stage_round(cast("Path", server.url(prefix)), *overrides)


def behind(proxy: FlakyProxy, prefix: str) -> str:
    """The clients' URL of the same store, which tries each request once."""
    url = f"s3://{BUCKET}/{prefix}?endpoint={proxy.endpoint}&timeout_s=10&attempts=1"
    assert open_store(url).capabilities.creates_if_absent, "the probe is over before the counting begins"
    return url


def train(
    staged: Staged, url: str, client: str, attempt: int = 1, *, error: DeadlineExceededError | None = None
) -> None:
    ticket = Ticket(client, attempt, "inline")
    run_client(url, RUN_ID, staged.plan.round_index, ticket, bench=staged.bench, should_stop=lambda: error)


def on_the_wire(proxy: FlakyProxy) -> dict[str, int]:
    ours = [passage for passage in proxy.passages if f"/runs/{RUN_ID}/" in passage.path]
    return {
        "uplink": sum(passage.sent for passage in ours if passage.method == "PUT"),
        "downlink": sum(passage.answered for passage in ours if (passage.method, passage.status) == ("GET", 200)),
    }


def on_the_bill(lines: list[LedgerLine]) -> dict[str, int]:
    return {way: sum(line.num_bytes for line in lines if line.direction == way) for way in ("uplink", "downlink")}


@pytest.mark.usefixtures("home", "at_once")
@pytest.mark.parametrize("method", METHODS)
def test_the_ledger_and_the_wire_agree_to_the_byte(method, server, proxy, monkeypatch):
    staged, url = staged_in(server, method, *METHODS[method]), behind(proxy, method)
    lines: list[LedgerLine] = []

    proxy.arm("lose answer", methods=("PUT",))  # of the update: the client looks what lies there
    train(staged, url, "c00")
    train(staged, url, "c01", error=DeadlineExceededError("client training", "took too long"))
    train(staged, url, "c01", attempt=2)
    staged = closed(staged, monkeypatch)
    lines += staged.initial.collection.ledger
    assert on_the_bill(lines) == on_the_wire(proxy)

    proxy.arm("503", methods=("PUT",))  # the update does not arrive: the whole attempt is tried again
    train(staged, url, "c00")
    proxy.arm("none", "none", "503", methods=("GET",))  # the share does not come
    train(staged, url, "c01")
    staged = closed(staged, monkeypatch)
    lines += staged.initial.collection.ledger
    assert on_the_bill(lines) == on_the_wire(proxy)

    moved = {(x.round_index, x.client_id, x.attempt, x.direction, x.what): x.num_bytes for x in lines}
    assert {what for *_, what in moved} >= {"plan", "share", "update", "manifest", "failure"}
    assert (1, "c00", 1, "downlink", "update") in moved, "looked at after a lost answer"
    assert moved[2, "c00", 1, "uplink", "update"] >= 1.9 * moved[1, "c00", 1, "uplink", "update"], "sent twice"
    assert len(staged.initial.collection.accepted) == 2


@pytest.mark.flow
@pytest.mark.usefixtures("home", "prefect_backend")
def test_a_run_of_its_own_downloads_and_books_the_run_too(server, proxy, monkeypatch):
    staged, url = staged_in(server, "pool", *TWO), behind(proxy, "pool")
    spec = RunSpec(
        run_id=RUN_ID,
        config=staged.bench.frozen_config(),
        base_digest=staged.bench.base.digest,
        code_version="0",
        created_at="2026-01-01T00:00:00Z",
    )
    commit_record(staged.store, keys.run_spec(RUN_ID), spec)
    monkeypatch.setenv("RANKWEAVE_STORE", url)
    client_update(RUN_ID, 1, "c00")
    lines = list(closed(staged, monkeypatch).initial.collection.ledger)
    assert on_the_bill(lines) == on_the_wire(proxy)
    (run,) = (line for line in lines if line.what == "run")
    assert run.num_bytes == staged.store.size(keys.run_spec(RUN_ID))
