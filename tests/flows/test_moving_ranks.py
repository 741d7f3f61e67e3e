"""Ranks that move: lowered by memory or by the client, decided by schedulers, and cut where they changed."""

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest

from configs.rank_desk import RankDesk
from infra.run_store import read_adapter, write_adapter
from tasks.adapters.products import adapter_distance, adapter_norm
from tasks.adapters.resize import resize
from tasks.aggregators.shares import recut
from tasks.evaluate_adapter import evaluate_adapter
from tasks.open_run import open_run
from tasks.plan_round import plan_round
from tasks.rounds.capabilities import Limit
from tasks.rounds.keys import GLOBAL
from tasks.rounds.steps import Candidate, Group
from tasks.rounds.summary import RunHandle
from tests.flows.closing import closed
from tests.flows.staged import bench_of, stage_round

ANNEALED = (
    "rounds=3",
    "ranks.client_fractions=[1.0]",
    "ranks.schedulers=[sa_annealing]",
    "ranks.options=[{name: curve, value: linear}, {name: floor_rank, value: 2}]",
    "cohort.quorum=1",
)


@pytest.mark.parametrize("name", ["rbla", "fedavg", "zero_pad", "raflora", "flexlora"])
def test_where_ranks_fall_the_global_adapter_is_cut_once_by_svd(tmp_path, monkeypatch, name):
    staged = stage_round(tmp_path / "store", *ANNEALED, f"aggregation.name={name}")
    staged.train("c00", "c01")
    after = closed(staged, monkeypatch)
    assert {(c.old, c.new) for c in after.initial.rank_changes} == {(8, 5)}
    assert all(c.reason.startswith("sa_annealing: ") for c in after.initial.rank_changes)
    whole = read_adapter(after.store, "small-1", after.initial.models[GLOBAL])
    cut = read_adapter(after.store, "small-1", after.plan.cuts[GLOBAL])
    ranks = after.bench.module_ranks(5)
    assert cut.ranks == ranks
    best = adapter_distance(whole, resize(whole, ranks))
    assert adapter_distance(whole, cut) == pytest.approx(best, abs=1e-5 * adapter_norm(whole))
    share = after.share("c00")
    assert share.ranks == ranks
    assert adapter_distance(share, cut) <= 1e-5 * adapter_norm(cut)
    assert all(bool((p.a.any(dim=1) | p.b.any(dim=0)).all()) for p in share.pairs.values()), "no slot is dead"


def test_a_round_goes_on_from_the_cut_adapter_and_a_second_cut_follows_the_next_change(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *ANNEALED)
    staged.train("c00", "c01")
    second = closed(staged, monkeypatch)
    second.train("c00", "c01", "c02")
    third = closed(second, monkeypatch)
    made = read_adapter(third.store, "small-1", third.initial.models[GLOBAL])
    assert made.ranks == second.bench.module_ranks(5)
    assert {(c.old, c.new) for c in third.initial.rank_changes} == {(5, 2)}
    assert third.plan.cuts[GLOBAL].sha256 != second.plan.cuts[GLOBAL].sha256


def test_a_failed_round_keeps_the_change_due(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *ANNEALED)
    staged.train("c00", "c01")
    second = closed(staged, monkeypatch)
    third = closed(second, monkeypatch)  # nobody answered
    assert third.initial.outcome == "failed"
    assert third.initial.models == second.initial.models
    assert third.initial.rank_changes == second.initial.rank_changes
    assert third.initial.rounds_done == second.initial.rounds_done == 1
    assert third.plan.cuts[GLOBAL].sha256 == second.plan.cuts[GLOBAL].sha256
    assert [i.rank for i in third.plan.invitations] == [5] * 5


def test_fixed_ranks_are_never_cut(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", "cohort.quorum=1")
    staged.train("c00", "c01")
    after = closed(staged, monkeypatch)
    assert after.plan.cuts == {}
    assert after.initial.rank_changes == ()


def test_a_plan_made_again_after_a_crash_is_the_same(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *ANNEALED)
    staged.train("c00", "c01")
    after = closed(staged, monkeypatch)
    after.store.delete(after.keys.plan)
    again = plan_round.fn(after.run, after.plan.round_index, after.initial, after.bench)
    assert again.plan == after.plan


PRUNING = (
    "ranks.schedulers=[hetlora_prune]",
    "training.local_methods=[hetlora_prune]",
    "aggregation.name=hetlora",
    "training.options=[{name: prune_gamma, value: 0.6}, {name: prune_lambda, value: 100}, "
    "{name: prune_min_rank, value: 1}]",
    "cohort.quorum=1",
)


def test_a_client_that_prunes_itself_comes_back_smaller_and_stays_so(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *PRUNING)
    staged.train("c02")
    first = closed(staged, monkeypatch)
    assert staged.manifest("c02").lowered == "", "b is zero at first: there is no tail to shrink"
    first.train("c02")
    manifest = first.manifest("c02")
    assert (manifest.rank, manifest.lowered) == (4, "pruned")
    second = closed(first, monkeypatch)
    assert second.initial.limits == {"c02": Limit(pruned_rank=4)}
    (change,) = second.initial.rank_changes
    assert (change.client_id, change.old, change.new) == ("c02", 8, 4)
    assert change.reason.startswith("hetlora_prune: ")


def test_measured_machines_are_remembered_and_bound_ranks(tmp_path, monkeypatch):
    overrides = (
        "ranks.schedulers=[capability]",
        "cohort.quorum=1",
        "dispatch.simulated_machines=[{uplink_bytes_per_s: 450.0}, {uplink_bytes_per_s: 1.0e9}]",
        "cohort.deadline_s=10",
    )
    staged = stage_round(tmp_path / "store", *overrides)
    staged = replace(
        staged, initial=msgspec.structs.replace(staged.initial, ranks=RankDesk(staged.bench).first_ranks().ranks)
    )
    assert set(staged.initial.ranks.values()) == {1}, "nobody has been heard of"
    staged.train("c01", "c02")
    after = closed(staged, monkeypatch)
    known = after.initial.capabilities
    assert set(known) == {"c01", "c02"}
    assert all(c.flops_per_s > 0 and c.memory_bytes > 0 for c in known.values())
    assert all(c.downlink_bytes_per_s == 0 for c in known.values()), "they drew their shares, which says nothing"
    assert known["c02"].uplink_bytes_per_s == 450.0
    assert after.initial.ranks == {"c00": 1, "c01": 4, "c02": 3, "c03": 1, "c04": 1}
    reasons = {change.client_id: change.reason for change in after.initial.rank_changes}
    assert set(reasons) == {"c01", "c02"}
    assert reasons["c02"].startswith("capability: ")
    after.train("c01")
    known = closed(after, monkeypatch).initial.capabilities
    assert known["c01"].downlink_bytes_per_s > 0, "its second share was downloaded"
    assert known["c01"].uplink_bytes_per_s == 1e9


def test_the_ranks_of_the_first_round_have_reasons_too(tmp_path, home):
    bench = bench_of(*ANNEALED, "ranks.schedulers=[capability]", "ranks.options=[{name: unknown_rank, value: 2}]")
    run = RunHandle(
        "small-2", str(tmp_path / "store"), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="small"
    )
    record = open_run.fn(run, bench, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert record.ranks == dict.fromkeys(bench.clients, 2)
    assert {(c.old, c.new) for c in record.rank_changes} == {(8, 2)}
    assert all(c.reason.startswith("capability: ") for c in record.rank_changes)


def test_an_adapter_smaller_than_its_clients_grows_even_where_ranks_are_fixed(tmp_path):
    """As when the only client of a cluster that ever trained was held back by its memory."""
    staged = stage_round(tmp_path / "store")
    small = recut(staged.bench.initial_adapter(), staged.bench.module_ranks(2))
    model = write_adapter(staged.store, staged.keys, small, staged.bench.peft_config(small), model="cluster-1")
    record = msgspec.structs.replace(staged.initial, round_index=1, models={GLOBAL: model})
    planned = plan_round.fn(staged.run, 2, record, staged.bench)
    grown = read_adapter(staged.store, "small-1", planned.plan.cuts[GLOBAL])
    assert grown.ranks == staged.bench.module_ranks(8)
    assert adapter_distance(grown, small) == pytest.approx(0.0, abs=1e-6)


def test_the_ladder_leaves_out_ranks_that_an_adapter_does_not_have(tmp_path):
    staged = stage_round(tmp_path / "store")
    small = recut(staged.bench.initial_adapter(), staged.bench.module_ranks(2))
    model = write_adapter(staged.store, staged.keys, small, staged.bench.peft_config(small), model="cluster-1")
    group = Group("cluster-1", GLOBAL, (), members=("c00",))
    found = evaluate_adapter.fn(staged.plan, Candidate(group, model, {}, 0.0, {}, {}), staged.url, staged.bench)
    assert "accuracy_at_rank_002" in found
    assert "accuracy_at_rank_004" not in found, "clients of another cluster train at that"


def test_a_failed_round_does_not_take_a_turn_of_a_local_method(tmp_path, monkeypatch):
    occasions = []
    staged = stage_round(tmp_path / "store", "cohort.quorum=1")
    make = type(staged.bench).local_method

    def noted(bench, occasion):
        occasions.append(occasion)
        return make(bench, occasion)

    monkeypatch.setattr(type(staged.bench), "local_method", noted)
    second = closed(staged, monkeypatch)  # nobody answered
    second.train("c00")
    assert [occasion.round_index for occasion in occasions] == [1]
    assert second.plan.round_index == 2
