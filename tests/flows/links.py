"""The two ends of the links of a staged round: what clients fetch, keep and are booked, and what the server reads."""

from typing import Any

import numpy as np
import pytest

from infra.private_state import PrivateState
from infra.settings import read_settings
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import encode_adapter
from tasks.rounds.records import Invitation, Share
from tasks.shares import Fetched, fetch_share
from tasks.training.loop import train
from tests.flows.staged import RUN_ID, Staged

THREE = ("data.partition.num_clients=3", "cohort.quorum=1", "evaluation.prefix_ladder=false")
ONE_RANK = "ranks.client_fractions=[1.0]"


def invitation_of(staged: Staged, client: str) -> Invitation:
    (invitation,) = (i for i in staged.plan.invitations if i.client_id == client)
    return invitation


def share_of(staged: Staged, client: str) -> Share:
    return staged.plan.share_of(invitation_of(staged, client))


def private(client: str) -> PrivateState:
    return PrivateState(read_settings().home, RUN_ID, client)


def fetched(staged: Staged, client: str) -> Fetched:
    return fetch_share(staged.store, staged.plan, invitation_of(staged, client), staged.bench, private(client))


def served(staged: Staged, client: str) -> LoraAdapter:
    """The share as the server reads it."""
    share = share_of(staged, client)
    return staged.bench.exchange(staged.plan).read_share(share, staged.store.get(share.key))


def bits(adapter: LoraAdapter) -> bytes:
    return encode_adapter(adapter)


def booked(staged: Staged, client: str, what: str = "share", direction: str = "downlink") -> int:
    """What the ledger says of one kind of a client's objects [bytes]."""
    lines = staged.look().close().ledger
    (line,) = (x for x in lines if (x.client_id, x.direction, x.what) == (client, direction, what))
    return line.num_bytes


def numbers(adapter: LoraAdapter) -> np.ndarray:
    """All numbers of an adapter with factors, in one order."""
    tensors = [t for _, pair in sorted(adapter.pairs.items()) for t in (pair.a, pair.b)]
    return np.concatenate([t.double().numpy().ravel() for t in [*tensors, *adapter.dense.values()]])


def starve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next training run out of memory."""
    errors = [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]

    def starved(*args: Any, **more: Any) -> Any:
        if errors:
            raise errors.pop()
        return train(*args, **more)

    monkeypatch.setattr("tasks.local_work.train", starved)
