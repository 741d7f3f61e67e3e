"""Clients whose memory is too small: they come back with less, and are not asked for more again."""

import pytest
import torch

from infra.metered_store import Meter
from tasks.adapters.lora import prefix
from tasks.adapters.peft_files import decode_adapter
from tasks.adapters.products import adapter_distance
from tasks.errors import ClientMemoryError
from tasks.rounds import keys
from tasks.rounds.capabilities import Limit
from tasks.train_client import report_failure
from tasks.training.loop import train
from tests.flows.closing import closed
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
    report_failure(staged.store, staged.keys, client_id="c02", attempt=1, error=caught.value, meter=Meter())
    after = closed(staged, monkeypatch)
    assert after.initial.limits == {"c02": Limit(memory_rank=4, batch_size=16)}
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
    return staged.bench.exchange(staged.plan).update(read_sent(staged, client), read_sent(staged, client), client)


def read_sent(staged: Staged, client: str):
    return decode_adapter(staged.store.get(staged.key(client, keys.UPDATE)))
