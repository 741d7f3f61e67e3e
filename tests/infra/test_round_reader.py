"""What the server reads of a round: starts, messages and steps as clients meant them, damage as the server's own."""

from typing import Any

import msgspec
import pytest
import torch

from infra.object_store import ObjectStore
from infra.round_reader import RoundReader
from infra.run_store import read_held
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import encode_adapter
from tasks.adapters.steps import advanced, step_between
from tasks.errors import AdapterFormatError, IntegrityError, ObjectNotFoundError, UpdateRefusedError
from tasks.rounds import keys
from tasks.rounds.records import Acceptance, sha256
from tests.flows.closing import closed
from tests.flows.links import ONE_RANK, THREE, bits, invitation_of, share_of
from tests.flows.staged import RUN_ID, Staged, stage_round

LAZY = ("exchange.lazy=aquila", "exchange.lazy_options=[{name: aquila_beta, value: 1e6}]")

pytestmark = pytest.mark.usefixtures("home")


class Counting:
    """A store that remembers what was read."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner, self.read = inner, []

    def get(self, key: str) -> bytes:
        self.read.append(key)
        return self.inner.get(key)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


def reader_of(staged: Staged, store: Any = None) -> RoundReader:
    return RoundReader(store or staged.store, staged.plan, staged.bench.exchange(staged.plan))


def accepted(staged: Staged, client: str) -> Acceptance:
    return staged.look().accepted[client]


@pytest.fixture
def skipping(tmp_path, monkeypatch) -> Staged:
    """Round 2, in which c00 skipped."""
    staged = stage_round(tmp_path / "store", *THREE, *LAZY)
    staged.train("c00", "c01", "c02")
    staged = closed(staged, monkeypatch)
    staged.train("c00")
    return staged


def test_a_share_is_read_once_for_all_who_were_sent_it(tmp_path):
    staged = stage_round(tmp_path / "store", *THREE, ONE_RANK)
    store = Counting(staged.store)
    reader = reader_of(staged, store)
    starts = [reader.start(i) for i in staged.plan.invitations for _ in range(2)]
    assert store.read == [share_of(staged, "c00").key]
    assert len({bits(start) for start in starts}) == 1


def test_a_start_at_a_lower_rank_is_the_methods_cut(tmp_path):
    staged = stage_round(tmp_path / "store", *THREE)
    reader, invitation = reader_of(staged), invitation_of(staged, "c02")
    whole, low = reader.start(invitation), reader.start(invitation, 4)
    assert (whole.ranks, low.ranks) == (staged.bench.module_ranks(8), staged.bench.module_ranks(4))
    for path, pair in low.pairs.items():
        assert torch.equal(pair.a, whole.pairs[path].a[: pair.rank])


def test_an_update_is_what_the_client_trained(tmp_path):
    staged = stage_round(tmp_path / "store", *THREE)
    staged.train("c01")
    found = reader_of(staged).update(accepted(staged, "c01"))
    assert encode_adapter(found) == staged.store.get(staged.key("c01", keys.UPDATE))


@pytest.mark.parametrize("codec", ["fp32", "compact", "laq"])
def test_a_step_is_what_an_update_changes_of_its_start(tmp_path, codec):
    staged = stage_round(tmp_path / "store", *THREE, f"exchange.uplink_codec={codec}")
    staged.train("c01")
    reader, acceptance = reader_of(staged), accepted(staged, "c01")
    step = reader.step(acceptance)
    assert bits(step) == bits(step_between(reader.start_of(acceptance), reader.update(acceptance)))
    assert any(bool(pair.b.any()) for pair in step.pairs.values())


def test_what_skipped_is_the_held_step_on_the_share_of_today(skipping):
    reader, acceptance = reader_of(skipping), accepted(skipping, "c00")
    assert acceptance.skipped
    held = read_held(skipping.store, RUN_ID, "c00", skipping.initial.held["c00"])
    assert bits(reader.message(acceptance)) == bits(advanced(reader.start_of(acceptance), held))
    assert bits(reader.held(invitation_of(skipping, "c00")) or LoraAdapter({})) == bits(held)


def test_nothing_is_held_of_a_client_that_nobody_heard_of(tmp_path):
    staged = stage_round(tmp_path / "store", *THREE, *LAZY)
    assert reader_of(staged).held(invitation_of(staged, "c00")) is None


def spoil(store: ObjectStore, key: str) -> None:
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))


def test_an_altered_update_is_not_read(tmp_path):
    staged = stage_round(tmp_path / "store", *THREE)
    staged.train("c01")
    acceptance = accepted(staged, "c01")
    spoil(staged.store, staged.key("c01", keys.UPDATE))
    with pytest.raises(IntegrityError, match=r"c01/1/update.*bytes were altered"):
        reader_of(staged).update(acceptance)
    staged.store.delete(staged.key("c01", keys.UPDATE))
    with pytest.raises(ObjectNotFoundError):
        reader_of(staged).update(acceptance)


def test_an_altered_share_is_not_read(tmp_path):
    staged = stage_round(tmp_path / "store", *THREE)
    spoil(staged.store, share_of(staged, "c01").key)
    with pytest.raises(IntegrityError, match="bytes were altered"):
        reader_of(staged).start(invitation_of(staged, "c01"))


@pytest.mark.parametrize("spoilt", [spoil, lambda store, key: store.delete(key)], ids=["altered", "gone"])
def test_a_damaged_held_step_is_the_servers_fault(skipping, spoilt):
    spoilt(skipping.store, keys.RoundKeys(RUN_ID, 1).held("c00"))
    with pytest.raises((IntegrityError, ObjectNotFoundError)):
        skipping.look()


def test_a_difference_to_something_else_is_refused(tmp_path):
    """Its digest holds, and still it says nothing about this client's start."""
    staged = stage_round(tmp_path / "store", *THREE, "exchange.uplink_codec=compact", ONE_RANK)
    staged.train("c01")
    exchange = staged.bench.exchange(staged.plan)
    start = staged.share("c01")
    other = advanced(start, start)
    data, _ = exchange.up.encode(other, other, None, exchange.trip)
    staged.store.put(staged.key("c01", keys.UPDATE), data)
    staged.claim("c01", update_sha256=sha256(data), update_bytes=len(data))
    inbox = staged.look()
    assert [(r.client_id, r.reason) for r in inbox.refused.values()] == [("c01", "unreadable")]
    acceptance = msgspec.structs.replace(_claimed(staged), update_sha256=sha256(data))
    with pytest.raises((AdapterFormatError, UpdateRefusedError), match="another reference"):
        reader_of(staged).update(acceptance)


def _claimed(staged: Staged) -> Acceptance:
    manifest = staged.manifest("c01")
    return Acceptance(
        client_id="c01",
        attempt=1,
        rank=8,
        manifest_sha256=manifest.update_sha256,
        update_sha256=manifest.update_sha256,
        num_examples=1,
        update_norm=0.0,
        training_s=0.0,
        metrics={},
    )
