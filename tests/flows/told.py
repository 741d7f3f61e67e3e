"""Rounds of methods that do not just send both factors, told with real clients and kept for tests to look at."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from configs.workbench import Workbench
from infra.run_store import commit_record, read_adapter
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import decode_adapter
from tasks.aggregate_updates import aggregate_updates
from tasks.local_work import LocalWork
from tasks.plan_round import plan_round
from tasks.rounds.keys import GLOBAL
from tasks.rounds.records import RoundRecord
from tasks.rounds.steps import Candidate, one_group
from tasks.training.adaptation import adapt, extract_adapter, load_adapter
from tasks.training.models import BaseModel
from tasks.training.spec import limited_threads
from tests.flows.staged import RUN_ID, Staged, bench_of, stage_round

COHORT = ["c00", "c01", "c02"]
THREE = ("data.partition.num_clients=3", "cohort.quorum=2")
FLORA = (*THREE, "aggregation.name=flora_stack")
FEDEX = (*THREE, "aggregation.name=fedex", "ranks.client_fractions=[0.5]")
FFA = (*THREE, "aggregation.name=ffa")
FEDSA = (*THREE, "aggregation.name=fedsa", "training.validation_frac=0.2")
HALF = ("exchange.uplink_codec=fp16", "exchange.downlink_codec=fp16")


@dataclass(frozen=True)
class Story:
    """Some rounds of one run in one folder.

    Args:
        rounds: Round index -> the round as its clients found it.
        bases: (round index, client id) -> the base model it trained on.
        starts: (round index, client id) -> the adapter it trained from, whole.
        ends: (round index, client id) -> the adapter it trained, before anything of it was left out.
        home: Where clients keep what they do not send.
    """

    rounds: dict[int, Staged]
    bases: dict[tuple[int, str], BaseModel]
    starts: dict[tuple[int, str], LoraAdapter]
    ends: dict[tuple[int, str], LoraAdapter]
    home: Path

    def copy(self, round_index: int, folder: Path) -> Staged:
        """One of the rounds in another folder, with all that came after it."""
        return self.rounds[round_index].copy(folder / "store")


def told(folder: Path, overrides: tuple[str, ...], *cohorts: list[str]) -> Story:
    """Let each cohort train one round, and close all rounds but the last.

    Every client merges and remembers for itself, as if alone on its machine.
    """
    story = Story({}, {}, {}, {}, folder / "home")
    sites = {client: copy.copy(bench_of(*overrides).load()) for client in COHORT}

    def spied(*args: Any) -> LocalWork:
        work = LocalWork(*args)
        story.bases[work.round_index, work.client_id] = work.base
        return work

    def loaded(model: PeftModel, adapter: LoraAdapter) -> None:
        story.starts[next(reversed(story.bases))] = adapter
        load_adapter(model, adapter)

    def extracted(model: PeftModel) -> LoraAdapter:
        adapter = extract_adapter(model)
        story.ends[next(reversed(story.bases))] = adapter
        return adapter

    with pytest.MonkeyPatch.context() as patch, limited_threads(1):
        patch.setenv("RANKWEAVE_HOME", str(story.home))
        patch.setattr("tasks.train_client.LocalWork", spied)
        patch.setattr("tasks.local_work.load_adapter", loaded)
        patch.setattr("tasks.local_work.extract_adapter", extracted)
        staged = stage_round(folder / "store", *overrides)
        for index, cohort in enumerate(cohorts, 1):
            for client in cohort:
                replace(staged, bench=sites[client]).train(client)
            story.rounds[index] = staged
            staged = settled(staged) if index < len(cohorts) else staged
    return story


def settled(staged: Staged) -> Staged:
    """Close a round with what came in, and plan the one after."""
    collection = commit_record(staged.store, staged.keys.collection, staged.look().close())
    record = RoundRecord(
        run_id=RUN_ID,
        round_index=staged.plan.round_index,
        outcome="committed",
        models={GLOBAL: candidate_of(staged).adapter},
        ranks=staged.initial.ranks,
        collection=collection,
    )
    planned = plan_round.fn(staged.run, record.round_index + 1, record, staged.bench)
    return replace(staged, initial=record, plan=planned.plan)


def candidate_of(staged: Staged) -> Candidate:
    """What a round's updates are woven into."""
    (group,) = one_group(staged.look().close()).groups
    return aggregate_updates.fn(staged.run, staged.plan, group, staged.initial, staged.bench)


def before(staged: Staged) -> LoraAdapter:
    """The global adapter that a round's clients go on from."""
    return read_adapter(staged.store, RUN_ID, staged.initial.models[GLOBAL])


def merges_before(staged: Staged) -> dict[int, LoraAdapter]:
    """What every client's base has to hold in a round, by the round that made it."""
    return {m.round_index: decode_adapter(staged.store.get(m.key)) for m in staged.plan.merges.get(GLOBAL, ())}


def mean_product(staged: Staged, path: str) -> np.ndarray:
    """The mean by examples of what clients sent for a module [O, I], in numpy."""
    clients = sorted(staged.look().accepted)
    sizes = [staged.manifest(client).num_examples for client in clients]
    pairs = [staged.update(client).pairs[path] for client in clients]
    terms = [n * pair.b.double().numpy() @ pair.a.double().numpy() for n, pair in zip(sizes, pairs, strict=True)]
    return np.sum(terms, axis=0) / sum(sizes)


@torch.inference_mode()
def logits(bench: Workbench, base: BaseModel, adapter: LoraAdapter) -> torch.Tensor:
    """What a base model with an adapter on it answers to some test examples."""
    model = adapt(base, bench.lora, adapter.ranks, seed=0)
    load_adapter(model, adapter)
    batch = bench.test.batch(np.arange(100))
    batch.pop("labels")
    return model.eval()(**batch).logits


def payload(data: bytes) -> int:
    """Bytes of a file's tensors, without its header."""
    return len(data) - 8 - int.from_bytes(data[:8], "little")
