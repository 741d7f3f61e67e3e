"""Clients whose uploads arrive at set times, for tests of how long a round waits."""

import pytest

from tasks.collect_updates import POLL_S, Patience, collect_updates
from tasks.rounds import keys
from tasks.rounds.records import ClientFailure, encode
from tests.flows.staged import deliver


class Scripted:
    """Clients whose uploads arrive at set times of a clock that only waiting moves."""

    def __init__(self, arrivals, *, ends_at=float("inf")):
        self.now, self.arrivals, self.ends_at, self.stops = 0.0, dict(arrivals), ends_at, 0
        self._arrive()

    def clock(self):
        return self.now

    def wait(self, timeout_s):
        assert 0 < timeout_s <= POLL_S
        self.now += timeout_s
        self._arrive()

    def is_running(self):
        return self.now < self.ends_at

    def stop(self):
        self.stops += 1

    def _arrive(self):
        for time in sorted(t for t in self.arrivals if t <= self.now):
            self.arrivals.pop(time)()


class Untouchable:
    """Client runs, and a clock, that nobody may ask."""

    def __init__(self):
        self.clock = self.wait = self.is_running = self.stop = self._refuse

    def _refuse(self, *_args):
        pytest.fail("a fixed collection was waited for")


def uploads(trained, staged, times):
    """Time [s] -> the arrival of a client's upload."""
    return {time: lambda client=client: deliver(trained, staged, client) for client, time in times.items()}


def collect(staged, dispatched, *, deadline_s=60.0, grace_s=60.0):
    patience = Patience(deadline_s, grace_s, clock=dispatched.clock)
    return collect_updates.fn(staged.plan, staged.url, dispatched, patience, bench=staged.bench)


def fail(staged, client, attempt=1):
    failure = ClientFailure(client_id=client, attempt=attempt, reason="DataError", detail="its disk is gone")
    staged.store.put(staged.key(client, keys.FAILURE, attempt), encode(failure))


def accepted(collection):
    return [a.client_id for a in collection.accepted]
