"""Lazy clients in real rounds: both ends hold the same bits, whatever was skipped, lost, refused or failed."""

import msgspec
import numpy as np
import pytest

from infra.run_store import read_adapter, read_held
from tasks.errors import IntegrityError
from tasks.plan_round import plan_round
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL
from tasks.uplink import HELD
from tests.flows.closing import closed, judged_of
from tests.flows.links import ONE_RANK, THREE, bits, booked, invitation_of, numbers, private, starve
from tests.flows.staged import RUN_ID, Staged, stage_round

COHORT = ["c00", "c01", "c02"]
EAGER = "{name: max_skips, value: 2}"
AQUILA = (*THREE, "exchange.lazy=aquila", f"exchange.lazy_options=[{{name: aquila_beta, value: 1e6}}, {EAGER}]")
LAQ = (*THREE, "exchange.lazy=laq", f"exchange.lazy_options=[{{name: laq_xi, value: 1e6}}, {EAGER}]")
CODECS = ["fp32", "fp16", "compact", "laq", "aquila", "flasc", "flocora", "ecolora"]

pytestmark = pytest.mark.usefixtures("home")


def skipped(staged: Staged) -> list[str]:
    return [client for client, a in sorted(staged.look().accepted.items()) if a.skipped]


def after(staged: Staged, monkeypatch, *rounds: list[str]) -> Staged:
    """Let cohorts train, one round each, and plan the round behind them."""
    for cohort in rounds:
        staged.train(*cohort)
        staged = closed(staged, monkeypatch)
    return staged


def assert_in_step(staged: Staged) -> None:
    """What the server holds of clients is, bit for bit, what they keep."""
    assert set(staged.initial.held) == set(COHORT)
    for client, held in staged.initial.held.items():
        kept = private(client).find(HELD, held.sha256)
        assert kept is not None
        assert bits(kept) == bits(read_held(staged.store, RUN_ID, client, held))


# --- skipping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", [AQUILA, LAQ], ids=["aquila", "laq"])
def test_both_ends_hold_the_same_bits_after_every_round(tmp_path, monkeypatch, rule, codec):
    staged, skips = stage_round(tmp_path / "store", *rule, f"exchange.uplink_codec={codec}"), 0
    for _ in range(5):
        staged.train(*COHORT)
        assert sorted(staged.look().accepted) == COHORT
        skips += len(skipped(staged))
        staged = closed(staged, monkeypatch)
        assert_in_step(staged)
    assert skips > 0


@pytest.mark.parametrize("method", ["ffa", "fedsa", "zero_pad", "hetlora"])
@pytest.mark.parametrize("downlink", ["fp32", "compact"])
def test_both_ends_hold_the_same_bits_whatever_is_sent(tmp_path, monkeypatch, method, downlink):
    thin = (f"aggregation.name={method}", "training.validation_frac=0.2", f"exchange.downlink_codec={downlink}")
    staged = stage_round(tmp_path / "store", *AQUILA, *thin)
    for index in range(1, 5):
        staged.train(*COHORT)
        assert skipped(staged) == (COHORT if index in {2, 3} else [])
        staged = closed(staged, monkeypatch)
        assert_in_step(staged)


def test_a_client_sends_first_then_skips_as_often_as_it_may(tmp_path, monkeypatch):
    staged, told, counted = stage_round(tmp_path / "store", *AQUILA), [], []
    for _ in range(7):
        staged.train(*COHORT)
        told.append("".join("-" if client in skipped(staged) else "x" for client in COHORT))
        staged = closed(staged, monkeypatch)
        counted.append({held.skips for held in staged.initial.held.values()})
    assert told == ["xxx", "---", "---", "xxx", "---", "---", "xxx"]
    assert counted == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]


def test_who_skips_leaves_a_manifest_alone_and_a_line_of_no_bytes(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA), monkeypatch, COHORT)
    staged.train("c01")
    lying = [found.key for found in staged.store.list(f"{staged.keys.uplinks}c01/")]
    assert lying == [staged.key("c01", keys.MANIFEST)]
    manifest = staged.manifest("c01")
    assert manifest.skipped
    assert manifest.update_bytes == 0
    assert manifest.update_sha256 == manifest.held_sha256 == staged.initial.held["c01"].sha256
    assert booked(staged, "c01", "update", "uplink") == 0
    assert booked(staged, "c01", "manifest", "uplink") == staged.store.size(lying[0])


def test_what_is_held_counts_as_an_update_on_the_share_of_today(tmp_path, monkeypatch):
    """The mean by examples of share + held step, over all three who skip, in numpy."""
    staged = after(stage_round(tmp_path / "store", *AQUILA, ONE_RANK), monkeypatch, COHORT)
    staged.train(*COHORT)
    assert skipped(staged) == COHORT
    sizes = [staged.manifest(client).num_examples for client in COHORT]
    steps = [numbers(read_held(staged.store, RUN_ID, c, staged.initial.held[c])) for c in COHORT]
    mean = sum(n * (numbers(staged.share(c)) + step) for n, c, step in zip(sizes, COHORT, steps, strict=True))
    follows = closed(staged, monkeypatch)
    made = numbers(read_adapter(follows.store, RUN_ID, follows.initial.models[GLOBAL]))
    np.testing.assert_allclose(made, mean / sum(sizes), rtol=0, atol=1e-6)
    assert np.abs(made - numbers(staged.share("c00"))).max() > 1e-3, "the model moves on without a byte"
    assert follows.initial.weights == pytest.approx({c: n / sum(sizes) for c, n in zip(COHORT, sizes, strict=True)})
    assert all(a.update_norm > 0 for a in follows.initial.collection.accepted)


def test_where_nothing_is_lazy_nothing_is_held(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *THREE), monkeypatch, COHORT)
    assert staged.initial.held == {}
    assert private("c00").latest(HELD, 9) is None


# --- losing step ----------------------------------------------------------------------------------------------


def test_a_client_that_lost_its_memory_starts_afresh(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA), monkeypatch, COHORT)
    private("c01").forget()
    staged.train(*COHORT)
    manifest = staged.manifest("c01")
    assert (manifest.held_sha256, manifest.skipped) == ("", False)
    assert skipped(staged) == ["c00", "c02"]
    staged = closed(staged, monkeypatch)
    assert_in_step(staged)
    assert staged.initial.held["c01"].round_index == 2
    assert staged.initial.held["c01"].skips == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"held_sha256": "0" * 64, "update_sha256": "0" * 64},
        {"held_sha256": "0" * 64, "update_sha256": "0" * 64, "skipped": False},
        {"held_sha256": ""},
        {"update_sha256": "0" * 64},
        {"rank": 1, "lowered": "memory"},
    ],
    ids=["skips on another", "goes on from another", "skips on none", "two digests", "lower"],
)
def test_a_client_that_rests_on_another_update_is_refused(tmp_path, monkeypatch, lie):
    staged = after(stage_round(tmp_path / "store", *AQUILA), monkeypatch, COHORT)
    staged.train("c00", "c01")
    staged.claim("c01", **lie)
    collection = staged.look().close()
    assert [(r.client_id, r.reason) for r in collection.refused] == [("c01", "wrong-held")]
    assert [a.client_id for a in collection.accepted] == ["c00"]


def test_a_client_that_was_never_heard_of_cannot_skip(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA), monkeypatch, ["c00", "c01"])
    staged.train("c00", "c02")
    assert skipped(staged) == ["c00"]
    digest = staged.initial.held["c00"].sha256
    staged.claim("c02", skipped=True, held_sha256=digest, update_sha256=digest)
    assert [r.reason for r in staged.look().refused.values()] == ["wrong-held"]


@pytest.mark.parametrize("failures", [1, 3])
def test_failed_rounds_in_between_leave_both_ends_in_step(tmp_path, monkeypatch, failures):
    """What a client sent into a failed round was lost; after three of them it has forgotten what still holds."""
    rare = f"exchange.lazy_options=[{{name: aquila_beta, value: 0.01}}, {EAGER}]"
    staged = stage_round(tmp_path / "store", *AQUILA, rare, "cohort.quorum=3", "exchange.uplink_codec=compact")
    staged = after(staged, monkeypatch, COHORT)
    held = staged.initial.held
    for _ in range(failures):
        staged.train("c00")
        assert skipped(staged) == []
        staged = closed(staged, monkeypatch)
        assert staged.initial.outcome == "failed"
        assert staged.initial.held == held
    staged.train(*COHORT)
    assert sorted(staged.look().accepted) == COHORT
    expected = held["c00"].sha256 if failures < 3 else ""
    assert staged.manifest("c00").held_sha256 == expected
    assert_in_step(closed(staged, monkeypatch))


def test_an_absent_client_is_forgotten_at_the_age_limit(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA, "exchange.max_held_age=2"), monkeypatch, COHORT)
    for age in (1, 2, 3):
        assert (invitation_of(staged, "c02").held is not None) == (age <= 2)
        staged = after(staged, monkeypatch, ["c00", "c01"])
    staged.train("c02")
    assert (staged.manifest("c02").held_sha256, staged.manifest("c02").skipped) == ("", False)
    assert list(staged.look().accepted) == ["c02"]


# --- ranks ----------------------------------------------------------------------------------------------------


def test_a_lower_rank_and_the_cut_behind_it_drop_what_is_held_of_everybody(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA), monkeypatch, COHORT)
    staged.train("c00")
    with monkeypatch.context() as full:
        starve(full)
        staged.train("c02")
    manifest = staged.manifest("c02")
    assert (manifest.rank, manifest.skipped, manifest.held_sha256) == (4, False, "")
    cut = closed(staged, monkeypatch)
    assert cut.initial.ranks["c02"] == 4
    assert cut.plan.cuts
    assert [i.held for i in cut.plan.invitations] == [None] * 3
    cut.train("c00", "c02")
    assert skipped(cut) == []
    later = closed(cut, monkeypatch)
    assert later.plan.cuts == {}
    assert invitation_of(later, "c00").held == later.initial.held["c00"]
    assert invitation_of(later, "c01").held is None, "it was away while every slot became another one"
    later.train(*COHORT)
    assert sorted(later.look().accepted) == COHORT
    assert_in_step(closed(later, monkeypatch))


def test_what_is_held_at_another_rank_is_not_offered(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA), monkeypatch, COHORT)
    held = msgspec.structs.replace(staged.initial.held["c01"], rank=3)
    record = msgspec.structs.replace(staged.initial, held=staged.initial.held | {"c01": held})
    staged.store.delete(staged.keys.plan)
    plan = plan_round.fn(staged.run, 2, record, staged.bench).plan
    assert {i.client_id: i.held is not None for i in plan.invitations} == {"c00": True, "c01": False, "c02": True}


# --- again ----------------------------------------------------------------------------------------------------


def test_a_round_aggregated_again_gives_the_same_bytes(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA, "exchange.uplink_codec=compact"), monkeypatch, COHORT)
    private("c01").forget()
    staged.train(*COHORT)
    other = staged.copy(tmp_path / "other")
    one, two = (judged_of(each, each.look().close()) for each in (staged, other))
    again = judged_of(staged, staged.look().close())
    for judged in (two, again):
        assert judged[0].candidate.adapter == one[0].candidate.adapter
        assert judged[0].candidate.held == one[0].candidate.held
    found = {f.key: staged.store.get(f.key) for f in staged.store.list(f"{staged.keys.root}/")}
    assert found == {f.key: other.store.get(f.key) for f in other.store.list(f"{other.keys.root}/")}


def test_an_attempt_made_again_says_the_same(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA, "exchange.uplink_codec=compact"), monkeypatch, COHORT)
    staged = after(staged, monkeypatch, COHORT, COHORT)
    staged.train("c00")
    first = staged.manifest("c00")
    assert not first.skipped
    staged.train("c00", attempt=2)
    second = staged.manifest("c00", attempt=2)
    assert (first.update_sha256, first.held_sha256) == (second.update_sha256, second.held_sha256)


def test_an_altered_held_step_stops_the_server_and_blames_nobody(tmp_path, monkeypatch):
    staged = after(stage_round(tmp_path / "store", *AQUILA), monkeypatch, COHORT)
    staged.train("c00")
    key = keys.RoundKeys(RUN_ID, 1).held("c00")
    staged.store.put(key, staged.store.get(key)[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="bytes were altered"):
        staged.look()
