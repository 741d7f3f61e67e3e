"""A lossy downlink bends what clients start from, never the global adapter."""

import pytest
import torch
from msgspec.structs import replace

from infra.run_store import read_adapter, write_adapter
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import encode_adapter, to_state_dict
from tasks.aggregate_updates import aggregate_updates
from tasks.rounds.steps import Group
from tests.flows.closing import closed
from tests.flows.links import THREE, served
from tests.flows.staged import RUN_ID, Staged, stage_round

COHORT = ["c00", "c01", "c02"]
SPARSE = "exchange.downlink_options=[{name: keep, value: 0.05}, {name: bits, value: 32}]"
WAYS = {
    "top": ("exchange.downlink_codec=compact", SPARSE),
    "one bit": ("exchange.downlink_codec=compact", "exchange.downlink_options=[{name: bits, value: 1}]"),
    "segments": ("exchange.downlink_codec=ecolora",),
    "half": ("exchange.downlink_codec=fp16",),
}

pytestmark = pytest.mark.usefixtures("home")


def global_of(staged: Staged) -> LoraAdapter:
    return read_adapter(staged.store, RUN_ID, staged.initial.models["global"])


def trained(folder, monkeypatch, *way: str) -> Staged:
    """A round of real training behind it, so that the next share is not the first."""
    staged = stage_round(folder, *THREE, "ranks.client_fractions=[1.0]", *way)
    staged.train(*COHORT)
    return closed(staged, monkeypatch)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("method", ["rbla", "zero_pad", "ffa"])
def test_clients_that_change_nothing_leave_the_global_adapter_where_it_is(tmp_path, monkeypatch, method, way):
    staged = trained(tmp_path / "store", monkeypatch, f"aggregation.name={method}", *way)
    before = to_state_dict(global_of(staged))
    start = served(staged, "c00")
    assert encode_adapter(start) != encode_adapter(global_of(staged)), "the downlink loses something"
    monkeypatch.setattr("tasks.local_work.train", lambda *_args, **_options: Untrained())
    staged.train(*COHORT)
    after = to_state_dict(global_of(closed(staged, monkeypatch)))
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, rtol=0, atol=1e-6)


def test_what_a_step_left_out_arrives_with_the_next_ones(tmp_path, monkeypatch):
    staged = trained(tmp_path / "store", monkeypatch, *WAYS["segments"])
    monkeypatch.setattr("tasks.local_work.train", lambda *_args, **_options: Untrained())
    for _ in range(5):
        staged.train(*COHORT)
        staged = closed(staged, monkeypatch)
    there, meant = to_state_dict(served(staged, "c00")), to_state_dict(global_of(staged))
    for key, tensor in meant.items():
        torch.testing.assert_close(there[key], tensor, rtol=0, atol=1e-6)


def test_who_comes_from_another_cluster_is_owed_what_its_own_share_lacked(tmp_path, monkeypatch):
    """Not the way from its cluster to the one it joins."""
    staged = trained(tmp_path / "store", monkeypatch, *WAYS["one bit"])
    monkeypatch.setattr("tasks.local_work.train", lambda *_args, **_options: Untrained())
    staged.train(*COHORT)
    elsewhere = staged.bench.initial_adapter()
    joined = write_adapter(staged.store, staged.keys, elsewhere, staged.bench.peft_config(elsewhere), model="cluster-2")
    previous = replace(staged.initial, models={**staged.initial.models, "cluster-2": joined})
    group = Group("cluster-3", "cluster-2", staged.look().close().accepted)
    candidate = aggregate_updates.fn(staged.run, staged.plan, group, previous, staged.bench)
    made, meant = (to_state_dict(a) for a in (read_adapter(staged.store, RUN_ID, candidate.adapter), global_of(staged)))
    for key, tensor in meant.items():
        torch.testing.assert_close(made[key], tensor, rtol=0, atol=1e-6)


class Untrained:
    """What a training that took no step reports."""

    num_examples, num_items, num_steps, seconds = 1, 1, 1, 0.01
    first_loss = last_loss = mean_loss = 1.0
