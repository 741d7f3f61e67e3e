"""Clients that do not answer: links that lose, others that stand in, and who is invited where not all are."""

import msgspec
import numpy as np
import pytest

from configs.workbench import Workbench
from infra.run_store import read_adapter
from tasks.adapters.products import adapter_distance
from tasks.plan_round import plan_round
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL
from tasks.rounds.knowledge import ClientKnowledge
from tasks.rounds.records import RoundRecord
from tests.flows.closing import closed, judged_of
from tests.flows.links import ONE_RANK, booked, numbers
from tests.flows.small import small_config
from tests.flows.staged import CLIENTS, RUN_ID, Staged, stage_round

QUIET = ("cohort.quorum=1", "evaluation.prefix_ladder=false")
LOSSY = (*QUIET, "dispatch.simulated_loss=0.5")
# Whoever met once may stand in, however far away: who does is then the nearest.
ANYBODY = (
    "[{name: min_seen, value: 1}, {name: epsilon, value: 100}, {name: gamma, value: 0.5}, {name: kappa, value: 1}]"
)
SURROGATES = (*QUIET, "aggregation.surrogates=true", f"aggregation.surrogate_options={ANYBODY}")

pytestmark = pytest.mark.usefixtures("home")


# --- links that lose ------------------------------------------------------------------------------------------


def test_what_is_lost_was_sent_and_paid_for_and_the_client_is_missing(tmp_path):
    staged = stage_round(tmp_path / "store", *LOSSY)
    lost = [client for client in CLIENTS if staged.bench.loses(1, client)]
    assert 0 < len(lost) < len(CLIENTS)
    staged.train(*CLIENTS)
    collection = staged.look().close()
    assert list(collection.missing) == lost
    assert [a.client_id for a in collection.accepted] == [c for c in CLIENTS if c not in lost]
    for client in lost:
        assert staged.store.size(staged.key(client, keys.MANIFEST)) is None
        assert booked(staged, client, "update", "uplink") == staged.store.size(staged.key(client, keys.UPDATE))
        assert booked(staged, client, "plan") > 0


def test_a_second_attempt_over_the_same_link_is_lost_too(tmp_path):
    staged = stage_round(tmp_path / "store", *LOSSY)
    lost = next(client for client in CLIENTS if staged.bench.loses(1, client))
    staged.train(lost)
    staged.train(lost, attempt=2)
    assert staged.look().accepted == {}


def test_losses_follow_from_seed_round_and_client_alone():
    def drawn(*overrides: str) -> list[bool]:
        bench = Workbench(small_config(*LOSSY, *overrides))
        return [bench.loses(index, f"c{client:02d}") for index in range(1, 41) for client in range(25)]

    first = drawn()
    assert first == drawn("training.epochs=3") != drawn("seed=1")
    assert 0.45 < sum(first) / len(first) < 0.55
    rows = np.asarray(first).reshape(40, 25)
    assert len({tuple(row) for row in rows}) == 40
    assert len({tuple(column) for column in rows.T}) == 25
    assert not any(drawn("dispatch.simulated_loss=0"))
    mild = drawn("dispatch.simulated_loss=0.1")
    assert all(worse for worse, better in zip(first, mild, strict=True) if better), "a worse link loses those as well"


# --- standing in ----------------------------------------------------------------------------------------------


def two_rounds(tmp_path, monkeypatch, *overrides: str, there: tuple[str, ...] = ("c00", "c01", "c02")) -> Staged:
    """Round 2, trained by some, of a run whose first round had everybody."""
    staged = stage_round(tmp_path / "store", ONE_RANK, *overrides)
    staged.train(*CLIENTS)
    staged = closed(staged, monkeypatch)
    staged.train(*there)
    return staged


def test_without_surrogates_the_mean_is_over_those_who_came(tmp_path, monkeypatch):
    staged = two_rounds(tmp_path, monkeypatch, *QUIET)
    sizes = {client: staged.manifest(client).num_examples for client in ("c00", "c01", "c02")}
    after = closed(staged, monkeypatch)
    assert after.initial.weights == pytest.approx({c: n / sum(sizes.values()) for c, n in sizes.items()})
    assert (after.initial.notes, after.initial.distances) == ({}, ())


def test_the_nearest_that_came_stands_in_for_who_did_not(tmp_path, monkeypatch):
    """Distances of round 1 and faded weights by examples, in plain floats."""
    staged = two_rounds(tmp_path, monkeypatch, *SURROGATES)
    met = {frozenset(row[:2]): row[2] for row in staged.initial.distances}
    assert {row[3] for row in staged.initial.distances} == {1}
    sizes = {client: known.num_examples for client, known in staged.initial.knowledge.items()}
    there = ["c00", "c01", "c02"]
    nearest = {u: min(there, key=lambda v: met[frozenset((u, v))]) for u in ("c03", "c04")}
    raw = {v: sizes[v] + sum(0.5 * sizes[u] for u, other in nearest.items() if other == v) for v in there}
    shares = {v: weight / sum(raw.values()) for v, weight in raw.items()}
    assert max(shares.values()) < 0.5, "nobody reaches the cap"
    after = closed(staged, monkeypatch)
    assert after.initial.weights == pytest.approx(shares)
    assert sum(after.initial.weights.values()) == pytest.approx(1.0)
    assert after.initial.notes == {u: f"{v} stands in" for u, v in nearest.items()}
    mean = sum(shares[c] * numbers(staged.update(c)) for c in there)
    made = read_adapter(after.store, RUN_ID, after.initial.models[GLOBAL])
    np.testing.assert_allclose(numbers(made), mean, rtol=0, atol=1e-6)


def test_distances_are_those_of_what_training_changed(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *SURROGATES)
    staged.train("c01", "c02")
    expected = adapter_distance(staged.update("c01"), staged.update("c02"))  # the first shares' products are zero
    after = closed(staged, monkeypatch)
    assert [(a, b, n) for a, b, _, n in after.initial.distances] == [("c01", "c02", 1)]
    assert after.initial.distances[0][2] == pytest.approx(expected, rel=1e-5)


def test_figures_tell_what_share_of_the_missing_is_covered(tmp_path, monkeypatch):
    staged = two_rounds(tmp_path, monkeypatch, *SURROGATES)
    (judged,) = judged_of(staged, staged.look().close())
    assert judged.candidate.figures["surrogates_covered"] == 1.0
    strangers = stage_round(tmp_path / "strangers", *SURROGATES)
    strangers.train("c00")
    (judged,) = judged_of(strangers, strangers.look().close())
    assert judged.candidate.figures["surrogates_covered"] == 1.0, "nobody is known to be missing"
    assert judged.candidate.notes == {}


def test_memory_survives_a_failed_round_and_an_absent_client(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *SURROGATES, "cohort.quorum=2")
    staged.train(*CLIENTS)
    second = closed(staged, monkeypatch)
    second.train("c00")
    third = closed(second, monkeypatch)
    assert third.initial.outcome == "failed"
    assert third.initial.distances == second.initial.distances
    known = third.initial.knowledge
    assert sorted(known) == CLIENTS
    assert {client: one.last_round for client, one in known.items()} == dict.fromkeys(CLIENTS, 1) | {"c00": 2}
    third.train("c00", "c01", "c02")
    fourth = closed(third, monkeypatch)
    assert set(fourth.initial.notes) == {"c03", "c04"}
    counts = {(a, b): n for a, b, _, n in fourth.initial.distances}
    assert counts["c00", "c01"] == 2
    assert counts["c03", "c04"] == 1
    assert fourth.initial.knowledge["c03"] == known["c03"]


def test_who_was_never_heard_of_is_left_out(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *SURROGATES)
    staged.train("c00", "c01", "c02")
    after = closed(staged, monkeypatch)
    after.train("c00", "c01")
    assert set(closed(after, monkeypatch).initial.notes) == {"c02"}


# --- who is invited -------------------------------------------------------------------------------------------


def knows(staged: Staged, **shown: dict[str, float]) -> RoundRecord:
    """The record before, as if clients had shown something else."""
    plain = ClientKnowledge(update_norm=1.0, loss=1.0, num_examples=100, last_round=1)
    known = {client: msgspec.structs.replace(plain, **shown.get(client, {})) for client in CLIENTS}
    return msgspec.structs.replace(staged.initial, knowledge=known)


@pytest.mark.parametrize(
    ("selection", "shown"),
    [
        ("by_norm", {"c03": {"update_norm": 1e6}, "c01": {"update_norm": 1e6}}),
        ("by_loss", {"c03": {"loss": 9.0}, "c01": {"loss": 8.0}}),
    ],
)
def test_a_selection_prefers_whom_it_should(tmp_path, selection, shown):
    more = ", {name: candidates, value: 9}" if selection == "by_loss" else ""
    options = f"[{{name: floor, value: 0.01}}{more}]"
    overrides = (f"cohort.selection={selection}", f"cohort.selection_options={options}", "cohort.cohort_size=2")
    staged = stage_round(tmp_path / "store", *QUIET, *overrides)
    invited = []
    for index in range(2, 12):
        plan = plan_round.fn(staged.run, index, knows(staged, **shown), staged.bench).plan
        invited.append([i.client_id for i in plan.invitations])
    assert invited == [["c01", "c03"]] * 10


@pytest.mark.parametrize("selection", ["by_norm", "by_loss"])
def test_who_was_not_heard_of_comes_first_in_a_run(tmp_path, monkeypatch, selection):
    """Five clients, two places: after three rounds everybody was there."""
    staged = stage_round(tmp_path / "store", *QUIET, f"cohort.selection={selection}", "cohort.cohort_size=2")
    invited: list[str] = []
    for _ in range(3):
        cohort = [i.client_id for i in staged.plan.invitations]
        invited += cohort
        staged.train(*cohort)
        staged = closed(staged, monkeypatch)
    assert set(invited) == set(CLIENTS)
    known = staged.initial.knowledge
    assert sorted(known) == CLIENTS
    assert all((one.update_norm or 0) > 0 and (one.loss or 0) > 0 for one in known.values())


def test_knowledge_is_what_was_accepted_last(tmp_path, monkeypatch):
    staged = stage_round(tmp_path / "store", *QUIET)
    staged.train("c00", "c01")
    after = closed(staged, monkeypatch)
    (first, _) = after.initial.collection.accepted
    assert after.initial.knowledge["c00"] == ClientKnowledge(
        update_norm=first.update_norm, loss=first.metrics["mean_loss"], num_examples=first.num_examples, last_round=1
    )
    assert set(after.initial.knowledge) == {"c00", "c01"}
