"""A real round without an orchestrator: round 0, a plan and real clients in a folder, for tests to spoil."""

import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec

from configs.workbench import Workbench
from infra.inbox import Inbox
from infra.object_store import ObjectStore, open_store
from infra.round_reader import RoundReader
from infra.run_store import commit_record, write_adapter
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import encode_adapter
from tasks.plan_round import plan_round
from tasks.rank_schedulers import NextRanks, RankDecision
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL, RoundKeys
from tasks.rounds.records import RoundPlan, RoundRecord, UpdateManifest, decode, encode, sha256
from tasks.rounds.summary import RunHandle
from tasks.train_client import train_client
from tests.flows.small import small_config

RUN_ID = "small-1"
CLIENTS = ["c00", "c01", "c02", "c03", "c04"]


@lru_cache
def bench_of(*overrides: str) -> Workbench:
    return Workbench(small_config(*overrides))


@dataclass(frozen=True)
class Staged:
    """One planned round in a folder.

    Args:
        folder: The store.
        bench: The run.
        initial: The record the plan follows from.
        plan: The round's plan.
    """

    folder: Path
    bench: Workbench
    initial: RoundRecord
    plan: RoundPlan

    @property
    def url(self) -> str:
        return str(self.folder)

    @property
    def run(self) -> RunHandle:
        return RunHandle(RUN_ID, self.url, tracking_uri="", experiment="small")

    @property
    def store(self) -> ObjectStore:
        return open_store(self.url)

    @property
    def keys(self) -> RoundKeys:
        return RoundKeys(RUN_ID, self.plan.round_index)

    def key(self, client: str, name: str, attempt: int = 1) -> str:
        return self.keys.uplink(client, attempt, name)

    def planned(self, **changes: object) -> "Staged":
        """The same round with another plan in memory."""
        return replace(self, plan=msgspec.structs.replace(self.plan, **changes))

    def train(self, *clients: str, attempt: int = 1) -> None:
        for client in clients:
            train_client.fn(
                self.url,
                RUN_ID,
                round_index=self.plan.round_index,
                client_id=client,
                attempt=attempt,
                bench=self.bench,
                should_stop=lambda: None,
            )

    def manifest(self, client: str, attempt: int = 1) -> UpdateManifest:
        key = self.key(client, keys.MANIFEST, attempt)
        return decode(UpdateManifest, self.store.get(key), key)

    def update(self, client: str) -> LoraAdapter:
        exchange = self.bench.exchange(self.plan)
        message = exchange.read_update(
            self.store.get(self.key(client, keys.UPDATE)), exchange.reference(self.share(client))
        )
        return exchange.update(message, self.share(client), f"client {client}")

    def share(self, client: str) -> LoraAdapter:
        (invitation,) = (i for i in self.plan.invitations if i.client_id == client)
        return RoundReader(self.store, self.plan, self.bench.exchange(self.plan)).start(invitation)

    def claim(self, client: str, **changes: object) -> None:
        """Replace a client's manifest by one that says something else."""
        manifest = msgspec.structs.replace(self.manifest(client), **changes)
        self.store.put(self.key(client, keys.MANIFEST), encode(manifest))

    def send(self, client: str, update: LoraAdapter) -> None:
        """Replace a client's update by another, with a manifest that vouches for it."""
        data = encode_adapter(update)
        self.store.put(self.key(client, keys.UPDATE), data)
        self.claim(client, update_sha256=sha256(data), update_bytes=len(data))

    def next(self) -> "Staged":
        """Close this round as failed, whatever came in, and plan the one after."""
        record = RoundRecord(
            run_id=RUN_ID,
            round_index=self.plan.round_index,
            outcome="failed",
            models=self.initial.models,
            ranks=self.initial.ranks,
        )
        planned = plan_round.fn(self.run, self.plan.round_index + 1, record, self.bench)
        return replace(self, initial=record, plan=planned.plan)

    @property
    def same_ranks(self) -> NextRanks:
        """The decision that leaves every rank as it is."""
        return NextRanks(RankDecision(self.initial.ranks, {}), {}, {})

    def look(self) -> Inbox:
        """What a fresh inbox finds."""
        inbox = Inbox(self.store, self.plan, self.bench.exchange(self.plan))
        inbox.look()
        return inbox

    def copy(self, folder: Path) -> "Staged":
        """The same round in another folder, as it is now."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)


def stage_round(folder: Path, *overrides: str) -> Staged:
    """Write round 0 and plan round 1."""
    bench, store = bench_of(*overrides), open_store(str(folder))
    adapter = bench.initial_adapter()
    initial = RoundRecord(
        run_id=RUN_ID,
        round_index=0,
        outcome="initial",
        models={GLOBAL: write_adapter(store, RoundKeys(RUN_ID, 0), adapter, bench.peft_config(adapter))},
        ranks=bench.initial_ranks(),
    )
    commit_record(store, RoundKeys(RUN_ID, 0).record, initial)
    run = RunHandle(RUN_ID, str(folder), tracking_uri="", experiment="small")
    return Staged(folder, bench, initial, plan_round.fn(run, 1, initial, bench).plan)


def deliver(source: Staged, target: Staged, client: str) -> None:
    """Let one client's finished upload arrive in another folder, the manifest last."""
    for name in (keys.UPDATE, keys.MANIFEST):
        target.store.put(target.key(client, name), source.store.get(source.key(client, name)))
