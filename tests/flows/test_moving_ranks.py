"""Ranks that move: lowered by memory or by the client, decided by schedulers, and cut where they changed."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from configs.rank_desk import RankDesk
from infra.run_store import commit_record, read_adapter
from tasks.adapters.lora import prefix
from tasks.adapters.products import adapter_distance, adapter_norm
from tasks.adapters.resize import resize
from tasks.aggregate_updates import aggregate_updates
from tasks.close_round import RoundResult, close_round
from tasks.errors import ClientMemoryError
from tasks.plan_round import plan_round
from tasks.reschedule_ranks import reschedule_ranks
from tasks.rounds.capabilities import Limit
from tasks.rounds.keys import GLOBAL
from tasks.rounds.steps import Judged, one_group
from tasks.train_client import report_failure
from tasks.training.loop import train
from tests.flows.staged import Staged, stage_round

TOO_MUCH = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.fixture
def shortage(monkeypatch):
    """Let the next trainings run out of memory; remembers the batch and rank of each."""
    tried: list[tuple[int, int]] = []

    def short(*, times, error=None):
        def starved(model, examples, indices, spec, **more):
            tried.append((spec.batch_size, next(iter(model.peft_config.values())).r))
            if len(tried) <= times:
                raise error or RuntimeError(TOO_MUCH)
            return train(model, examples, indices, spec, **more)

        monkeypatch.setattr("tasks.local_work.train", starved)
        return tried

    return short


def judged_of(staged: Staged, collection) -> tuple[Judged, ...]:
    (group,) = one_group(collection).groups
    candidate = aggregate_updates.fn(staged.run, staged.plan, group, staged.initial, staged.bench)
    return (Judged(candidate, {"accuracy": 0.5}, version=staged.plan.round_index),)


def closed(staged: Staged, monkeypatch) -> Staged:
    """Close a round with what came in, as the flow does, and plan the next."""
    monkeypatch.setattr("tasks.close_round.open_tracker", lambda *_, **__: Silent())
    collection = commit_record(staged.store, staged.keys.collection, staged.look().close())
    judged = judged_of(staged, collection) if len(collection.accepted) >= staged.plan.quorum else ()
    ranks = reschedule_ranks.fn(staged.plan, collection, judged, staged.initial, staged.url, staged.bench)
    result = RoundResult(ranks, judged, {}, {})
    record = close_round.fn(staged.run, staged.plan, collection, staged.initial, staged.bench, result=result)
    planned = plan_round.fn(staged.run, record.round_index + 1, record, staged.bench)
    return replace(staged, initial=record, plan=planned.plan)


class Silent:
    """A tracker for tests that are not about tracking."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_a_client_out_of_memory_comes_back_at_half_the_rank_and_is_not_asked_for_more(tmp_path, shortage, monkeypatch):
    staged = stage_round(tmp_path / "store")
    staged.train("c00", "c01", "c03", "c04")
    tried = shortage(times=1)
    staged.train("c02")
    assert tried == [(32, 8), (32, 4)]
    manifest = staged.manifest("c02")
    assert (manifest.rank, manifest.lowered, manifest.batch_size) == (4, "memory", 0)
    after = closed(staged, monkeypatch)
    assert [a.rank for a in after.initial.collection.accepted] == [2, 4, 4, 2, 4]
    assert after.initial.limits == {"c02": Limit(memory_rank=4)}
    (change,) = after.initial.rank_changes
    assert (change.client_id, change.old, change.new) == ("c02", 8, 4)
    assert change.reason == "memory: no larger rank fitted when it trained"
    assert {i.client_id: i.rank for i in after.plan.invitations}["c02"] == 4


def test_a_client_still_out_of_memory_halves_its_batch_and_keeps_that(tmp_path, shortage, monkeypatch):
    staged = stage_round(tmp_path / "store")
    staged.train("c00", "c01", "c03", "c04")
    tried = shortage(times=2, error=torch.OutOfMemoryError("CUDA out of memory"))
    staged.train("c02")
    assert tried == [(32, 8), (32, 4), (16, 4)]
    after = closed(staged, monkeypatch)
    assert after.initial.limits == {"c02": Limit(memory_rank=4, batch_size=16)}
    assert {i.client_id: i.batch_size for i in after.plan.invitations} == dict.fromkeys(staged.initial.ranks, 0) | {
        "c02": 16
    }


def test_a_client_that_nothing_helps_says_so_and_is_offered_half(tmp_path, shortage, monkeypatch):
    staged = stage_round(tmp_path / "store")
    staged.train("c00", "c01", "c03", "c04")
    shortage(times=9)
    with pytest.raises(
        ClientMemoryError, match=r"client c02, round 1: memory does not hold.*rank 8, batch 32"
    ) as caught:
        staged.train("c02")
    report_failure(staged.store, staged.keys, client_id="c02", attempt=1, error=caught.value)
    after = closed(staged, monkeypatch)
    assert after.initial.limits == {"c02": Limit(memory_rank=4)}
    assert after.initial.ranks["c02"] == 4


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path, shortage):
    staged = stage_round(tmp_path / "store")
    tried = shortage(times=1, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        staged.train("c02")
    assert len(tried) == 1


def test_ranks_that_must_stay_equal_are_not_lowered(tmp_path, shortage):
    staged = stage_round(tmp_path / "store", "aggregation.name=fedavg", "ranks.client_fractions=[1.0]")
    tried = shortage(times=1)
    staged.train("c02")
    assert tried == [(32, 8), (16, 8)]
    assert (staged.manifest("c02").rank, staged.manifest("c02").batch_size) == (0, 16)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rank": 4}, "4 (no reason)"),
        ({"rank": 8, "lowered": "memory"}, "8 (memory)"),
        ({"rank": 9, "lowered": "pruned"}, "9 (pruned)"),
        ({"rank": 0, "lowered": "pruned"}, "0 (pruned)"),
    ],
)
def test_a_lowered_rank_that_is_none_is_refused(tmp_path, changes, expected):
    staged = stage_round(tmp_path / "store")
    staged.train("c02")
    staged.claim("c02", **changes)
    (refusal,) = staged.look().refused.values()
    assert refusal.reason == "wrong-rank"
    assert f"got {expected}; expected 1 to 7, with a reason" in refusal.detail


def test_the_work_of_a_lowered_client_counts_as_what_it_trained(tmp_path, shortage):
    """Its share is cut the same way on both sides: the norm of what it added is that of its training alone."""
    staged = stage_round(tmp_path / "store")
    shortage(times=1)
    staged.train("c02")
    start = prefix(staged.share("c02"), staged.bench.module_ranks(4))
    (acceptance,) = staged.look().accepted.values()
    assert acceptance.update_norm == pytest.approx(adapter_distance(resize_to(staged, "c02"), start))


def resize_to(staged: Staged, client: str):
    return staged.bench.exchange.update(read_sent(staged, client), read_sent(staged, client), client)


def read_sent(staged: Staged, client: str):
    from tasks.codecs.table import codec
    from tasks.rounds import keys

    return codec(staged.plan.uplink_codec).decode(staged.store.get(staged.key(client, keys.UPDATE)), None)


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
        "dispatch.simulated_machines=[{uplink_bytes_per_s: 500.0}, {uplink_bytes_per_s: 1.0e9}]",
        "cohort.deadline_s=10",
    )
    staged = stage_round(tmp_path / "store", *overrides)
    staged = replace(
        staged, initial=msgspec.structs.replace(staged.initial, ranks=RankDesk(staged.bench).initial_ranks())
    )
    assert set(staged.initial.ranks.values()) == {1}, "nobody has been heard of"
    staged.train("c01", "c02")
    after = closed(staged, monkeypatch)
    known = after.initial.capabilities
    assert set(known) == {"c01", "c02"}
    assert all(c.flops_per_s > 0 and c.memory_bytes > 0 and c.downlink_bytes_per_s > 0 for c in known.values())
    assert known["c02"].uplink_bytes_per_s == 500.0
    assert after.initial.ranks == {"c00": 1, "c01": 4, "c02": 2, "c03": 1, "c04": 1}
    reasons = {change.client_id: change.reason for change in after.initial.rank_changes}
    assert set(reasons) == {"c01", "c02"}
    assert reasons["c02"].startswith("capability: ")
