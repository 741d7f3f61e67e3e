"""Two rounds over sites that come by themselves: one never shows up, one comes after the round was closed."""

import threading
import time

import pytest

from configs.workbench import Workbench
from flows.client_update import run_client
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import find_record, list_run_ids, read_records
from infra.settings import read_settings
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import RoundPlan
from tasks.rounds.steps import Ticket
from tests.flows.small import small_config

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("prefect_backend", "home")]

CONFIG = small_config("dispatch.mode=external", "cohort.deadline_s=60", "cohort.grace_s=4")
NO_SHOW, STRAGGLER = "c03", "c04"
PATIENCE_S = 120.0


def wait_for(find):
    end = time.monotonic() + PATIENCE_S
    while (found := find()) is None:
        assert time.monotonic() < end, "the server did not get there in time"
        time.sleep(0.05)
    return found


class Sites(threading.Thread):
    """All clients, each with the code that runs on a work pool; two of them misbehave in round 1."""

    def __init__(self, store_url):
        super().__init__(daemon=True)
        self.store_url, self.bench, self.errors = store_url, Workbench(CONFIG).load(), []

    def run(self):
        store = open_store(self.store_url)
        run_id = wait_for(lambda: next(iter(list_run_ids(store)), None))
        for round_index in (1, 2):
            keys = RoundKeys(run_id, round_index)
            wait_for(lambda keys=keys: find_record(store, keys.plan, RoundPlan))
            for client in self.bench.clients:
                if round_index == 2 or client not in {NO_SHOW, STRAGGLER}:
                    self.train(run_id, round_index, client)
            if round_index == 1:
                wait_for(lambda keys=keys: store.size(keys.collection))
                self.train(run_id, round_index, STRAGGLER)

    def train(self, run_id, round_index, client):
        run_client(
            self.store_url,
            run_id,
            round_index,
            Ticket(client, 1, "external"),
            bench=self.bench,
            should_stop=lambda: None,
        )


def test_two_rounds_with_a_no_show_and_a_straggler():
    sites = Sites(read_settings().store_url)
    sites.start()
    summary = federated_training(CONFIG)
    sites.join(PATIENCE_S)

    store = open_store(summary.store_url)
    _, first, second = read_records(store, summary.run_id)
    assert first.outcome == "degraded"
    assert first.collection.missing == (NO_SHOW, STRAGGLER)
    assert sorted(first.weights) == ["c00", "c01", "c02"]
    assert second.outcome == "committed"
    assert sorted(second.weights) == ["c00", "c01", "c02", NO_SHOW, STRAGGLER]
    assert [(r.client_id, r.round_index, r.reason) for r in second.collection.refused] == [(STRAGGLER, 1, "late")]
    assert store.size(RoundKeys(summary.run_id, 1).quarantine(STRAGGLER, 1))
    assert summary.outcome == "committed"
    assert summary.metrics["accuracy"] > 0.1
