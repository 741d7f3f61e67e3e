"""How long a round waits, what it then fixes, and what it books."""

import json

import msgspec
import pytest

from infra.progress import watching
from infra.run_store import commit_record
from tasks.errors import StoreUnavailableError
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Collection, encode
from tests.flows.scripted import Scripted, Untouchable, accepted, collect, fail, uploads
from tests.flows.staged import CLIENTS, deliver, stage_round


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return stage_round(tmp_path_factory.mktemp("empty") / "store")


@pytest.fixture(scope="module")
def trained(empty, tmp_path_factory):
    staged = empty.copy(tmp_path_factory.mktemp("trained") / "store")
    staged.train(*CLIENTS)
    return staged


@pytest.fixture
def staged(empty, tmp_path):
    return empty.copy(tmp_path / "store")


# --- when a round stops waiting -------------------------------------------------------------------------------


def test_a_full_cohort_ends_the_round_while_others_still_run(trained, staged):
    small = staged.planned(cohort_size=2, quorum=2)
    clients = Scripted(uploads(trained, staged, {"c03": 1.0, "c01": 2.0, "c00": 3.0}))
    collection = collect(small, clients)
    assert (accepted(collection), clients.now) == (["c01", "c03"], 2.0)
    assert collection.missing == ("c00", "c02", "c04")


def test_an_answer_from_everybody_ends_the_round_even_if_it_is_no(trained, staged):
    arrivals = uploads(trained, staged, {"c00": 1.0, "c01": 2.0, "c02": 3.0, "c03": 3.5})
    clients = Scripted(arrivals | {5.0: lambda: fail(staged, "c04")})
    collection = collect(staged, clients)
    assert (accepted(collection), clients.now) == (["c00", "c01", "c02", "c03"], 5.0)
    assert [(r.client_id, r.reason) for r in collection.refused] == [("c04", "DataError")]


def test_quorum_ends_the_round_after_grace_that_later_updates_do_not_renew(trained, staged):
    clients = Scripted(uploads(trained, staged, {"c00": 1.0, "c01": 2.0, "c02": 3.0, "c03": 6.0, "c04": 9.0}))
    collection = collect(staged, clients, grace_s=5.0)
    assert (accepted(collection), clients.now) == (["c00", "c01", "c02", "c03"], 8.0)
    assert collection.missing == ("c04",)


def test_no_grace_ends_the_round_at_quorum(trained, staged):
    clients = Scripted(uploads(trained, staged, {"c00": 1.0, "c01": 2.0, "c02": 3.0, "c03": 4.0}))
    assert accepted(collect(staged, clients, grace_s=0.0)) == ["c00", "c01", "c02"]
    assert clients.now == 3.0


def test_the_deadline_ends_a_round_below_quorum_to_the_moment(trained, staged):
    clients = Scripted(uploads(trained, staged, {"c00": 1.0, "c01": 2.0, "c02": 20.0}))
    collection = collect(staged, clients, deadline_s=10.25)
    assert (accepted(collection), clients.now) == (["c00", "c01"], 10.25)


def test_grace_does_not_reach_beyond_the_deadline(trained, staged):
    clients = Scripted(uploads(trained, staged, {"c00": 1.0, "c01": 2.0, "c02": 9.0}))
    collect(staged, clients, deadline_s=10.0, grace_s=60.0)
    assert clients.now == 10.0


def test_an_update_that_arrives_with_the_deadline_counts(trained, staged):
    clients = Scripted(uploads(trained, staged, {"c00": 10.0}))
    assert accepted(collect(staged, clients, deadline_s=10.0)) == ["c00"]


def test_a_round_ends_when_nothing_runs_any_more(trained, staged):
    clients = Scripted(uploads(trained, staged, {"c00": 1.0, "c01": 4.0, "c02": 30.0}), ends_at=4.0)
    collection = collect(staged, clients)
    assert (accepted(collection), clients.now) == (["c00", "c01"], 4.0)


def test_an_upload_between_the_last_runs_end_and_the_look_is_not_lost(trained, staged):
    class LastMoment(Scripted):
        def is_running(self):
            deliver(trained, staged, "c02")
            return False

    assert accepted(collect(staged, LastMoment({}))) == ["c02"]


def test_collecting_stops_nobody(trained, staged):
    clients = Scripted(uploads(trained, staged, {"c00": 1.0}))
    collect(staged, clients, deadline_s=5.0)
    assert clients.stops == 0, "a try that follows waits for the same runs"


# --- what is fixed --------------------------------------------------------------------------------------------


def test_a_collection_that_is_fixed_is_adopted_without_a_look(trained, staged):
    fixed = Collection(accepted=(), refused=(), missing=tuple(CLIENTS), ledger=())
    commit_record(staged.store, staged.keys.collection, fixed)
    for client in CLIENTS:
        deliver(trained, staged, client)
    assert collect(staged, Untouchable()) == fixed


def test_a_collection_is_fixed_under_its_key(trained, staged):
    for client in CLIENTS:
        deliver(trained, staged, client)
    collection = collect(staged, Scripted({}))
    assert staged.store.get(staged.keys.collection) == encode(collection)


def test_an_outage_fixes_nothing_and_a_second_try_collects_all(trained, staged, monkeypatch):
    for client in CLIENTS:
        deliver(trained, staged, client)

    def down(_self, _prefix):
        raise StoreUnavailableError("store", "does not answer")

    with monkeypatch.context() as outage:
        outage.setattr("infra.directory_store.DirectoryStore.list", down)
        with pytest.raises(StoreUnavailableError):
            collect(staged, Scripted({}))
    assert staged.store.size(staged.keys.collection) is None
    assert accepted(collect(staged, Scripted({}))) == CLIENTS


# --- what is booked -------------------------------------------------------------------------------------------


@pytest.fixture
def messy(trained, tmp_path):
    """c00 counts, c01 at its second try, c02 fails, c03 leaves an orphan, c04 says it all again after it counted."""
    staged = trained.copy(tmp_path / "messy")
    staged.train("c01", "c04", attempt=2)
    staged.claim("c01", nonce="0" * 32)
    staged.store.delete(staged.key("c02", keys.MANIFEST))
    fail(staged, "c02")
    staged.store.delete(staged.key("c03", keys.MANIFEST))
    return staged


def test_uplink_is_booked_as_it_lies_in_the_store(messy):
    words = {keys.UPDATE: "update", keys.MANIFEST: "manifest", keys.FAILURE: "failure"}
    lying = {}
    for found in messy.store.list(messy.keys.uplinks):
        client, attempt, name = found.key.removeprefix(messy.keys.uplinks).split("/")
        lying[client, int(attempt), words[name]] = found.size
    collection = collect(messy, Scripted({}, ends_at=0.0))
    assert accepted(collection) == ["c00", "c01", "c04"]
    assert collection.missing == ("c03",)
    booked = [line for line in collection.ledger if line.direction == "uplink"]
    assert {(line.client_id, line.attempt, line.what): line.num_bytes for line in booked} == lying
    assert len(booked) == len(lying) == 13, "every object once"


@pytest.mark.parametrize("drawn", [False, True])
def test_downlink_is_one_plan_and_one_share_for_each_attempt(messy, drawn):
    """A share that clients draw themselves is no download."""
    shares = {name: msgspec.structs.replace(share, drawn=drawn) for name, share in messy.plan.shares.items()}
    messy = messy.planned(shares=shares)
    for invitation in messy.plan.invitations:
        messy.store.put(messy.keys.part(invitation.client_id), encode(messy.plan.part_of(invitation)))
    sizes = {found.key: found.size for found in messy.store.list(f"{messy.keys.root}/")}
    attempts = [("c00", 1), ("c01", 1), ("c01", 2), ("c02", 1), ("c03", 1), ("c04", 1), ("c04", 2)]
    expected = []
    for client, attempt in attempts:
        share = 0 if drawn else sizes[messy.keys.share(messy.initial.ranks[client])]
        expected += [(client, attempt, "plan", sizes[messy.keys.part(client)]), (client, attempt, "share", share)]
    collection = collect(messy, Scripted({}, ends_at=0.0))
    booked = [line for line in collection.ledger if line.direction == "downlink"]
    assert [(line.client_id, line.attempt, line.what, line.num_bytes) for line in booked] == expected


def test_a_collection_does_not_depend_on_when_it_was_looked_at(trained, staged):
    for client in CLIENTS:
        deliver(trained, staged, client)
    at_once = staged.look().close()
    slowly = stage_round(staged.folder.parent / "slow")
    clients = Scripted(uploads(trained, slowly, {client: 9.0 - i for i, client in enumerate(CLIENTS)}))
    assert encode(collect(slowly, clients)) == encode(at_once)


# --- what came too late ---------------------------------------------------------------------------------------


@pytest.fixture
def overdue(trained, staged):
    """Round 2, after c04's update of round 1 arrived behind that round's collection."""
    for client in CLIENTS[:4]:
        deliver(trained, staged, client)
    first = collect(staged, Scripted({}, ends_at=0.0))
    assert first.missing == ("c04",)
    deliver(trained, staged, "c04")
    return staged.next()


def test_a_late_update_is_named_in_the_next_round_and_answers_nothing_there(overdue):
    collection = collect(overdue, Scripted({}, ends_at=0.0))
    assert [(r.client_id, r.round_index, r.attempt, r.reason) for r in collection.refused] == [("c04", 1, 1, "late")]
    assert (collection.accepted, collection.missing) == ((), tuple(CLIENTS))


def test_a_late_update_is_booked_once_where_it_was_noticed(overdue):
    ledger = collect(overdue, Scripted({}, ends_at=0.0)).ledger
    keys = RoundKeys("small-1", 1)
    lying = {found.size for found in overdue.store.list(f"{keys.uplinks}c04/")}
    assert {line.num_bytes for line in ledger if line.direction == "uplink"} == lying
    assert sorted(line.what for line in ledger) == ["manifest", "plan", "update"], (
        "0 bytes of a drawn share are no news"
    )
    assert collect(overdue.next(), Scripted({}, ends_at=0.0)).ledger == ()


def test_a_late_update_is_quarantined_under_its_own_round(overdue):
    (late,) = collect(overdue, Scripted({}, ends_at=0.0)).refused
    lying = [found.key for found in overdue.store.list("runs/small-1/quarantine/")]
    key = RoundKeys("small-1", 1).quarantine("c04", 1)
    assert lying == [key]
    assert json.loads(overdue.store.get(key)) == {"reason": "late", "detail": late.detail}


def test_a_late_update_is_named_once(overdue):
    collect(overdue, Scripted({}, ends_at=0.0))
    assert collect(overdue.next(), Scripted({}, ends_at=0.0)).refused == ()


def test_a_late_update_does_not_hide_its_clients_answer_to_the_round(overdue):
    overdue.train("c04")
    collection = collect(overdue, Scripted({}, ends_at=0.0))
    assert accepted(collection) == ["c04"]
    assert [r.reason for r in collection.refused] == ["late"]


def test_an_upload_without_a_manifest_is_not_late(trained, staged):
    collect(staged, Scripted({}, ends_at=0.0))
    staged.store.put(staged.key("c04", keys.UPDATE), trained.store.get(trained.key("c04", keys.UPDATE)))
    assert collect(staged.next(), Scripted({}, ends_at=0.0)).refused == ()


def test_every_answer_is_told_to_whoever_watches(trained, staged):
    told = []
    clients = Scripted(uploads(trained, staged, {"c00": 1.0, "c01": 2.0}), ends_at=2.0)
    with watching(lambda progress: told.append((progress.stage, progress.clients_done, progress.clients))):
        collect(staged, clients)
    assert told == [("client", 0, 5), ("client", 1, 5), ("client", 2, 5)]
