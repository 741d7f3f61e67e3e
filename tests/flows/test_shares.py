"""How clients come by their shares: drawn, led to by a step, or downloaded whole; the same bits in any case."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from infra.metered_store import Meter, MeteredStore
from infra.round_reader import RoundReader
from infra.run_store import read_adapter
from tasks.adapters.lora import LoraAdapter
from tasks.errors import IntegrityError
from tasks.plan_round import plan_round
from tasks.rounds.keys import GLOBAL
from tasks.rounds.records import sha256
from tasks.shares import SHARE, drawn_share, fetch_share
from tests.flows.closing import closed
from tests.flows.links import THREE, bits, booked, fetched, invitation_of, numbers, private, served, share_of, starve
from tests.flows.staged import RUN_ID, Staged, stage_round

STEPS = (*THREE, "exchange.downlink_codec=compact", "exchange.downlink_options=[{name: bits, value: 8}]")
EXACT_WAYS = [(), ("exchange.downlink_codec=fp16",), ("exchange.downlink_codec=compact",)]
METHODS = ["rbla", "ffa", "fedsa", "fed_sb", "flora_stack", "flexlora"]

pytestmark = pytest.mark.usefixtures("home")


def kept(client: str, staged: Staged) -> LoraAdapter | None:
    return private(client).find(SHARE, share_of(staged, client).sha256)


# --- the first round ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", EXACT_WAYS, ids=["fp32", "fp16", "compact"])
@pytest.mark.parametrize("method", METHODS)
def test_a_first_share_is_drawn_to_the_bit_and_costs_nothing(tmp_path, method, way):
    validated = "training.validation_frac=0.2"
    staged = stage_round(tmp_path / "store", *THREE, f"aggregation.name={method}", validated, *way)
    staged.store.delete(share_of(staged, "c01").key)
    drawn = fetched(staged, "c01")
    whole = fetched(staged, "c02")
    assert (drawn.num_bytes, whole.num_bytes) == (0, 0)
    assert bits(whole.message) == bits(served(staged, "c02")) == staged.store.get(share_of(staged, "c02").key)
    assert sha256(bits(drawn.message)) == share_of(staged, "c01").sha256


def test_a_first_share_is_booked_with_no_bytes(tmp_path):
    staged = stage_round(tmp_path / "store", *THREE)
    staged.train("c00")
    assert "share" not in staged.manifest("c00").downloaded
    assert booked(staged, "c00") == 0


@pytest.mark.parametrize("way", [(), ("exchange.downlink_codec=compact",)], ids=["fp32", "compact"])
def test_a_client_that_draws_something_else_downloads_the_same_bits(tmp_path, monkeypatch, way):
    staged = stage_round(tmp_path / "store", *THREE, *way)

    def otherwise(*args):
        drawn = drawn_share(*args)
        return LoraAdapter({path: replace(pair, a=pair.a + 1e-7) for path, pair in drawn.pairs.items()}, drawn.dense)

    monkeypatch.setattr("tasks.shares.drawn_share", otherwise)
    found = fetched(staged, "c02")
    assert found.num_bytes == share_of(staged, "c02").num_bytes > 0
    assert bits(found.message) == bits(served(staged, "c02"))
    staged.train("c02")
    assert booked(staged, "c02") == share_of(staged, "c02").num_bytes, "the word of a client that had to download"


def test_a_second_round_after_a_failed_first_one_is_drawn_as_well(tmp_path, monkeypatch):
    staged = closed(stage_round(tmp_path / "store", *STEPS), monkeypatch)  # nobody answered
    assert staged.initial.outcome == "failed"
    assert all(share.drawn for share in staged.plan.shares.values())
    assert fetched(staged, "c02").num_bytes == 0


def test_a_share_of_a_later_round_is_not_drawn(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *THREE)
    staged.train("c00", "c02")
    after = closed(staged, monkeypatch)
    assert not any(share.drawn or share.exact or share.step for share in after.plan.shares.values())
    found = fetched(after, "c02")
    assert found.num_bytes == share_of(after, "c02").num_bytes
    assert bits(found.message) == bits(after.share("c02"))


# --- steps ----------------------------------------------------------------------------------------------------


def second(tmp_path, monkeypatch, *overrides: str) -> Staged:
    """Round 2 of a run whose c00 and c02 were there in round 1."""
    staged = stage_round(tmp_path / "store", *STEPS, *overrides)
    staged.train("c00", "c02")
    return closed(staged, monkeypatch)


def test_who_was_there_follows_the_step_and_who_was_not_downloads_all(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch, "ranks.client_fractions=[1.0]")
    share = share_of(after, "c00")
    assert share.step is not None
    assert share.exact
    assert share.step.num_bytes < share.num_bytes / 3
    there, away = fetched(after, "c00"), fetched(after, "c01")
    assert (there.num_bytes, away.num_bytes) == (share.step.num_bytes, share.num_bytes)
    assert bits(there.message) == bits(away.message) == bits(served(after, "c00")) == after.store.get(share.key)


@pytest.mark.parametrize("method", ["rbla", "ffa", "fed_sb", "flora_stack", "flexlora"])
def test_all_three_ends_have_the_same_bits_for_many_rounds(tmp_path, monkeypatch, method):
    """One client is always there, one comes every other round; both start where the server thinks they do."""
    staged = stage_round(tmp_path / "store", *STEPS, f"aggregation.name={method}", "ranks.client_fractions=[1.0]")
    for _ in range(4):
        staged.train("c00", *(["c01"] if staged.plan.round_index % 2 else []))
        assert kept("c00", staged) is not None
        assert bits(kept("c00", staged) or LoraAdapter({})) == bits(served(staged, "c00"))
        if staged.plan.round_index > 1:
            assert share_of(staged, "c00").step is not None
            assert booked(staged, "c00") == getattr(share_of(staged, "c00").step, "num_bytes", -1)
        if staged.plan.round_index == 3:
            assert booked(staged, "c01") == share_of(staged, "c01").num_bytes
        staged = closed(staged, monkeypatch)
    assert staged.initial.outcome == "degraded"


def test_a_client_that_missed_a_round_downloads_all_and_follows_again(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch)
    after.train("c00")
    third = closed(after, monkeypatch)
    assert fetched(third, "c02").num_bytes == share_of(third, "c02").num_bytes
    third.train("c02")
    fourth = closed(third, monkeypatch)
    step = share_of(fourth, "c02").step
    assert step is not None
    assert fetched(fourth, "c02").num_bytes == step.num_bytes


def test_what_steps_leave_out_does_not_add_up(tmp_path, monkeypatch):
    """After any number of rounds a share is within half a step of the grid of what it stands for."""
    staged = stage_round(tmp_path / "store", *STEPS, "ranks.client_fractions=[1.0]")
    for _ in range(8):
        staged.train("c00", "c01")
        before, staged = served(staged, "c00"), closed(staged, monkeypatch)
        whole = read_adapter(staged.store, RUN_ID, staged.initial.models[GLOBAL])
        exact, start, old = (numbers(adapter) for adapter in (whole, served(staged, "c00"), before))
        largest = np.abs(exact - old).max()
        assert 0 < np.abs(exact - start).max() <= 1.001 * largest / 127 / 2


@pytest.mark.parametrize("spoil", ["flip", "cut", "other"])
def test_an_altered_step_is_never_followed(tmp_path, monkeypatch, spoil):
    after = second(tmp_path, monkeypatch)
    step = share_of(after, "c02").step
    assert step is not None
    data = after.store.get(step.key)
    other = share_of(after, "c00").step
    assert other is not None
    spoilt = {
        "flip": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "cut": data[:-3],
        "other": after.store.get(other.key),
    }
    after.store.put(step.key, spoilt[spoil])
    with pytest.raises(IntegrityError, match="bytes were altered"):
        fetched(after, "c02")


@pytest.mark.parametrize("garbage", [b"", b"none of ours", b"RwUp" + bytes(60)])
def test_a_step_that_nobody_can_read_is_made_up_for_by_the_whole_share(tmp_path, monkeypatch, garbage):
    """Its digest holds: the plan itself names it."""
    after = second(tmp_path, monkeypatch)
    share = share_of(after, "c02")
    assert share.step is not None
    step = msgspec.structs.replace(share.step, sha256=sha256(garbage), num_bytes=len(garbage))
    shares = after.plan.shares | {invitation_of(after, "c02").share_name: msgspec.structs.replace(share, step=step)}
    after.store.put(step.key, garbage)
    found = fetched(after.planned(shares=shares), "c02")
    assert found.num_bytes == len(garbage) + share.num_bytes
    assert bits(found.message) == bits(served(after, "c02"))


def test_a_step_that_leads_elsewhere_is_made_up_for_by_the_whole_share(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch)
    share = share_of(after, "c02")
    assert share.step is not None
    before = private("c02").find(SHARE, share.step.reference)
    assert before is not None
    exchange = after.bench.exchange(after.plan)
    data, _ = exchange.down.encode(before, before, None, exchange.trip)
    after.store.put(share.step.key, data)
    step = msgspec.structs.replace(share.step, sha256=sha256(data))
    shares = after.plan.shares | {invitation_of(after, "c02").share_name: msgspec.structs.replace(share, step=step)}
    found = fetched(after.planned(shares=shares), "c02")
    assert found.num_bytes == len(data) + share.num_bytes
    assert bits(found.message) == bits(served(after, "c02"))


def test_an_altered_whole_share_is_refused(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch)
    share = share_of(after, "c01")
    data = after.store.get(share.key)
    after.store.put(share.key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="bytes were altered"):
        fetched(after, "c01")
    with pytest.raises(IntegrityError, match="bytes were altered"):
        RoundReader(after.store, after.plan, after.bench.exchange(after.plan)).start(invitation_of(after, "c01"))


def test_a_client_whose_memory_of_its_share_was_altered_downloads_all(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch)
    step = share_of(after, "c02").step
    assert step is not None
    held = private("c02").find(SHARE, step.reference)
    assert held is not None
    private("c02").save(
        SHARE, 1, LoraAdapter({path: replace(p, a=p.a * 2) for path, p in held.pairs.items()}, held.dense)
    )
    found = fetched(after, "c02")
    assert found.num_bytes == share_of(after, "c02").num_bytes
    assert bits(found.message) == bits(served(after, "c02"))


ANNEALED = (
    "rounds=3",
    "ranks.client_fractions=[1.0]",
    "ranks.schedulers=[sa_annealing]",
    "ranks.options=[{name: curve, value: linear}, {name: floor_rank, value: 2}]",
)


def test_a_change_of_rank_breaks_the_chain_and_the_next_round_mends_it(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch, *ANNEALED)
    share = share_of(after, "c02")
    assert after.plan.cuts
    assert (share.step, share.moved, share.exact) == (None, (), True)
    assert fetched(after, "c02").num_bytes == share.num_bytes
    after.train("c00", "c02")
    collection = after.look().close()
    assert [a.client_id for a in collection.accepted] == ["c00", "c02"]


def test_a_cut_breaks_the_chain_of_clients_that_keep_their_rank(tmp_path, monkeypatch):
    """Behind a cut every slot is another one: what leads there from the share before is no step of training."""
    staged = stage_round(tmp_path / "store", *STEPS, "exchange.lazy=aquila")
    staged.train("c00", "c01")
    with monkeypatch.context() as full:
        starve(full)
        staged.train("c02")
    after = closed(staged, monkeypatch)
    assert after.plan.cuts
    assert [i.rank for i in after.plan.invitations] == [2, 4, 4]
    assert share_of(after, "c00").ranks == share_of(staged, "c00").ranks
    assert (share_of(after, "c00").step, share_of(after, "c00").moved) == (None, ())
    assert fetched(after, "c00").num_bytes == share_of(after, "c00").num_bytes
    after.train("c00", "c01", "c02")
    third = closed(after, monkeypatch)
    assert not third.plan.cuts
    assert share_of(third, "c00").step is not None
    assert len(share_of(third, "c00").moved) == 1


def test_a_plan_made_again_lays_out_the_same_bytes(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch, "exchange.downlink_options=[{name: stochastic, value: 1}]")
    found = {info.key: after.store.get(info.key) for info in after.store.list(f"{after.keys.root}/downlink/")}
    for key in [*found, after.keys.plan]:
        after.store.delete(key)
    assert plan_round.fn(after.run, after.plan.round_index, after.initial, after.bench).plan == after.plan
    assert found == {key: after.store.get(key) for key in found}


def test_a_meter_counts_what_a_share_cost(tmp_path, monkeypatch):
    after = second(tmp_path, monkeypatch)
    meter = Meter()
    store = MeteredStore(after.store, meter)
    found = fetch_share(store, after.plan, invitation_of(after, "c02"), after.bench, private("c02"))
    assert meter.downloaded == {"share": found.num_bytes}
