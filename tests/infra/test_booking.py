"""What clients say they moved is believed within bounds; what lies in the store is never booked too low."""

import msgspec
import pytest

from infra.booking import MOST_REPEATS, booked, booked_fusions
from tasks.rounds import keys
from tasks.rounds.ledger import exceeding
from tasks.rounds.records import ClientFailure, FusionReport, Merge, RunSpec, Step, encode
from tests.flows.staged import RUN_ID, Staged, stage_round


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Staged:
    staged = stage_round(tmp_path_factory.mktemp("booking") / "store")
    staged.train("c00")
    return staged


@pytest.fixture
def staged(trained, tmp_path) -> Staged:
    """Shares had to be downloaded, and nobody says yet what was."""
    staged = with_share(trained.copy(tmp_path / "store"), drawn=False)
    staged.claim("c00", downloaded={}, uploaded={})
    return staged


def bill(staged: Staged, client: str = "c00") -> dict[tuple[str, str], int]:
    lines = [line for line in booked(staged.store, staged.plan) if line.client_id == client]
    assert {line.round_index for line in lines} <= {1}
    assert len({(line.attempt, line.direction, line.what) for line in lines}) == len(lines), "one line each"
    return {(line.direction, line.what): line.num_bytes for line in lines}


def sizes(staged: Staged) -> dict[str, int]:
    """Kind -> size of what c00 moves once [bytes]."""
    lying = {name: staged.store.size(staged.key("c00", name)) for name in (keys.UPDATE, keys.MANIFEST)}
    (invitation,) = (i for i in staged.plan.invitations if i.client_id == "c00")
    share = staged.plan.share_of(invitation).num_bytes
    return {"plan": len(encode(staged.plan.part_of(invitation))), "share": share, "update": lying[keys.UPDATE] or 0}


def with_share(staged: Staged, **changes: object) -> Staged:
    shares = {name: msgspec.structs.replace(share, **changes) for name, share in staged.plan.shares.items()}
    return staged.planned(shares=shares)


def test_a_client_that_moved_everything_once_is_booked_what_lies_there(staged):
    once = sizes(staged)
    manifest = staged.store.size(staged.key("c00", keys.MANIFEST))
    assert bill(staged) == {
        ("uplink", "update"): once["update"],
        ("uplink", "manifest"): manifest,
        ("downlink", "plan"): once["plan"],
        ("downlink", "share"): once["share"],
    }


@pytest.mark.parametrize(("times", "booked_times"), [(0, 1), (1, 1), (3, 3), (MOST_REPEATS + 1, MOST_REPEATS)])
def test_words_count_between_once_and_the_most_repeats(staged, times, booked_times):
    once = sizes(staged)
    told = {kind: times * once[kind] for kind in ("plan", "share")}
    staged.claim("c00", downloaded=told, uploaded={"update": times * once["update"]})
    found = bill(staged)
    assert found["downlink", "plan"] == booked_times * once["plan"]
    assert found["downlink", "share"] == booked_times * once["share"]
    assert found["uplink", "update"] == booked_times * once["update"]


def test_kinds_that_a_client_has_no_business_with_are_not_believed(staged):
    once = bill(staged)
    staged.claim("c00", downloaded={"merge": 10**9, "adapter": 10**9, "other": 5, "run": 10**9})
    found = bill(staged)
    manifest = ("uplink", "manifest")
    assert {**found, manifest: 0} == {**once, manifest: 0}


def test_what_it_read_of_its_own_again_is_booked(staged):
    once = sizes(staged)
    staged.claim("c00", downloaded={"plan": once["plan"], "update": once["update"]})
    assert bill(staged)["downlink", "update"] == once["update"]


def test_a_failure_tells_as_a_manifest_does(staged):
    once = sizes(staged)
    failure = ClientFailure(
        client_id="c01", attempt=1, reason="DataError", detail="", downloaded={"plan": 2 * once["plan"]}
    )
    staged.store.put(staged.key("c01", keys.FAILURE), encode(failure))
    found = bill(staged, "c01")
    assert found["downlink", "plan"] == 2 * once["plan"]
    assert found["uplink", "failure"] == len(encode(failure))


@pytest.mark.parametrize(
    "word", [b"{}", b"{" * 10, b"x" * (1024 * 1024 + 1)], ids=["no fields", "no JSON", "too large"]
)
def test_words_that_are_none_leave_the_least(staged, word):
    before = bill(staged)
    staged.store.put(staged.key("c00", keys.MANIFEST), word)
    assert bill(staged) == {**before, ("uplink", "manifest"): len(word)}


def test_runs_of_their_own_download_the_run_unless_they_say_otherwise(staged):
    spec = RunSpec(run_id=RUN_ID, config={}, base_digest="0" * 64, code_version="0", created_at="")
    staged.store.put(keys.run_spec(RUN_ID), encode(spec))
    invitations = tuple(msgspec.structs.replace(i, pool="pools") for i in staged.plan.invitations)
    pools = staged.planned(invitations=invitations)
    assert bill(pools)["downlink", "run"] == len(encode(spec)), "it left no word"
    pools.claim("c00", downloaded={"plan": 1})
    assert ("downlink", "run") not in bill(pools), "it left word, and none of that"


def test_a_share_that_clients_draw_is_on_the_bill_with_nothing(staged):
    staged.claim("c00", downloaded={})
    assert bill(with_share(staged, drawn=True))["downlink", "share"] == 0


def test_a_step_counts_as_the_share_it_leads_to(staged):
    once = sizes(staged)
    step = Step(key="k", sha256="0" * 64, num_bytes=10, reference="0" * 64)
    stepped = with_share(staged, step=step)
    for told, expected in (({"plan": 1, "share": 10}, 10), ({"plan": 1}, 10), ({}, once["share"])):
        stepped.claim("c00", downloaded=told)
        assert bill(stepped)["downlink", "share"] == expected


def test_an_update_that_was_not_needed_is_on_the_bill_with_nothing(staged):
    staged.claim("c00", skipped=True)
    staged.store.delete(staged.key("c00", keys.UPDATE))
    assert bill(staged)["uplink", "update"] == 0


def test_merges_are_booked_as_told_and_all_without_word(staged):
    merges = tuple(Merge(round_index=t, key=f"m{t}", sha256="0" * 64, num_bytes=100 * t) for t in (1, 2))
    told = staged.planned(merges={"global": merges})
    for word, expected in (({"fetched": (2,)}, 200), ({"downloaded": {"merge": 400}, "fetched": (2,)}, 400)):
        told.claim("c00", **word)
        assert bill(told)["downlink", "merge"] == expected
    told.store.delete(told.key("c00", keys.MANIFEST))
    assert bill(told)["downlink", "merge"] == 300


def test_a_manifest_that_comes_late_adds_what_it_tells_beyond_what_was_booked(staged):
    manifest = staged.manifest("c00")
    staged.store.delete(staged.key("c00", keys.MANIFEST))
    before = booked(staged.store, staged.plan)
    once = sizes(staged)
    late = msgspec.structs.replace(manifest, downloaded={"share": 3 * once["share"]})
    staged.store.put(staged.key("c00", keys.MANIFEST), encode(late))
    new = exceeding(booked(staged.store, staged.plan), before)
    assert {(line.what, line.num_bytes) for line in new} == {
        ("manifest", len(encode(late))),
        ("share", 2 * once["share"]),
    }


def test_fusions_are_booked_in_the_last_round(staged):
    report = FusionReport(
        run_id=RUN_ID,
        client_id="c03",
        form="cat",
        personal_weight=0.5,
        shared_weight=0.5,
        evaluations=1,
        metrics={},
        downloaded={"adapter": 70, "record": 30},
    )
    staged.store.put(keys.fusion(RUN_ID, "c03"), encode(report))
    lines = booked_fusions(staged.store, staged.initial)
    assert {(line.client_id, line.direction, line.what, line.num_bytes) for line in lines} == {
        ("c03", "uplink", "fusion", len(encode(report))),
        ("c03", "downlink", "adapter", 70),
        ("c03", "downlink", "record", 30),
    }
