"""Cohorts with overshoot, and cohorts that cannot be: what a round calls itself, what a run refuses to start."""

from dataclasses import replace

import pytest

from configs.workbench import Workbench
from tasks.aggregate_updates import aggregate_updates
from tasks.close_round import RoundResult, close_round
from tasks.collect_updates import Patience, collect_updates
from tasks.data.sources import read_source
from tasks.errors import ConfigError
from tasks.plan_round import plan_round
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import decode, encode, sha256
from tasks.rounds.steps import Judged, one_group
from tests.flows.small import small_config
from tests.flows.staged import CLIENTS, bench_of, stage_round

OVERSHOOT = ("cohort.cohort_size=2", "cohort.overshoot=1", "cohort.quorum=1")


class Gone:
    """Client runs that have all ended."""

    def wait(self, timeout_s):
        pytest.fail(f"waited {timeout_s} s for nobody")

    def is_running(self):
        return False

    def stop(self):
        """Nothing runs."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return stage_round(tmp_path_factory.mktemp("overshoot") / "store", *OVERSHOOT)


@pytest.fixture
def staged(template, tmp_path):
    return template.copy(tmp_path / "store")


@pytest.fixture
def logged(monkeypatch):
    """What would go to MLflow: round -> metrics."""
    rounds = {}

    class Tracker:
        def log_round(self, round_index, metrics):
            rounds[round_index] = metrics

        def log_json(self, name, obj):
            assert name.startswith("diagnostics/round-")
            assert obj

    monkeypatch.setattr("tasks.close_round.open_tracker", lambda *_args, **_kwargs: Tracker())
    return rounds


def invited(staged):
    return [invitation.client_id for invitation in staged.plan.invitations]


def collected(staged):
    return collect_updates.fn(staged.plan, staged.url, Gone(), Patience(60.0, 60.0), bench=staged.bench)


def closed(staged, collection):
    (group,) = one_group(collection).groups
    candidate = aggregate_updates.fn(staged.run, staged.plan, group, staged.initial, staged.bench)
    result = RoundResult(staged.same_ranks, (Judged(candidate, {}, 0),))
    return close_round.fn(staged.run, staged.plan, collection, staged.initial, staged.bench, result=result)


# --- overshoot ------------------------------------------------------------------------------------------------


def test_overshoot_invites_more_clients_than_are_wanted(staged):
    assert len(invited(staged)) == 3
    assert set(invited(staged)) < set(CLIENTS)
    assert staged.plan.cohort_size == 2


@pytest.mark.usefixtures("logged")
def test_a_full_cohort_is_committed_though_an_invited_client_is_missing(staged):
    first, second, third = invited(staged)
    staged.train(first, third)
    collection = collected(staged)
    assert collection.missing == (second,)
    record = closed(staged, collection)
    assert record.outcome == "committed"
    assert sorted(record.weights) == [first, third]


@pytest.mark.usefixtures("logged")
def test_a_cohort_that_is_not_full_is_degraded(staged):
    staged.train(invited(staged)[0])
    assert closed(staged, collected(staged)).outcome == "degraded"


@pytest.mark.usefixtures("logged")
def test_a_round_without_a_result_is_failed_and_keeps_the_adapter_before(staged):
    record = close_round.fn(
        staged.run, staged.plan, collected(staged), staged.initial, staged.bench, result=RoundResult(staged.same_ranks)
    )
    assert (record.outcome, record.models) == ("failed", staged.initial.models)
    assert record.ranks == staged.initial.ranks


def test_a_closed_round_is_chained_and_logged(staged, logged):
    staged.train(*invited(staged)[:2])
    collection = collected(staged)
    record = closed(staged, collection)
    key = RoundKeys(staged.plan.run_id, 1).record
    assert decode(type(record), staged.store.get(key), key) == record
    assert record.previous_sha256 == sha256(encode(staged.initial))
    assert record.collection_sha256 == sha256(encode(collection))
    assert (logged[1]["clients_accepted"], logged[1]["clients_missing"]) == (2.0, 1.0)
    assert logged[1]["uplink_bytes"] == sum(found.size for found in staged.store.list(staged.keys.uplinks))


@pytest.mark.usefixtures("logged")
def test_a_round_that_is_closed_again_keeps_its_first_record(staged):
    staged.train(*invited(staged)[:2])
    collection = collected(staged)
    record = closed(staged, collection)
    again = close_round.fn(
        staged.run, staged.plan, collection, staged.initial, staged.bench, result=RoundResult(staged.same_ranks)
    )
    assert again == record


def test_an_overshot_client_that_answered_is_not_asked_again(staged):
    first, second, third = invited(staged)
    staged.train(second)
    planned = plan_round.fn(staged.run, 1, staged.initial, staged.bench)
    assert planned.plan == staged.plan
    assert [(t.client_id, t.attempt) for t in planned.tickets] == [(first, 1), (third, 1)]


def test_overshoot_beyond_everybody_wants_no_more_than_there_are(tmp_path):
    plan = stage_round(tmp_path, "cohort.cohort_size=4", "cohort.overshoot=9").plan
    assert (len(plan.invitations), plan.cohort_size) == (5, 4)


# --- what a run refuses to start ------------------------------------------------------------------------------


@pytest.fixture
def sites(monkeypatch):
    """Make the digits' train split name the site of every row: three sites, the last with one example."""

    def with_sites(source, spec):
        raw = read_source(source, spec)
        names = ["a" if row % 2 else "b" for row in range(len(raw.train) - 1)] + ["lonely"]
        return replace(raw, train=replace(raw.train, columns={"site": names}))

    monkeypatch.setattr("configs.workbench.read_source", with_sites)


NATURAL = ("data.partition.name=natural", "data.partition.column=site", "data.partition.num_clients=0")
RANKED = ("aggregation.weighting=ranked", "training.validation_frac=0.2", "cohort.quorum=1")


@pytest.mark.usefixtures("sites")
@pytest.mark.parametrize(
    ("cohort", "most"),
    [(("cohort.quorum=4",), 3), (("cohort.cohort_size=2", "cohort.overshoot=5", "cohort.quorum=3"), 2)],
)
def test_a_quorum_above_the_clients_wanted_is_refused_by_name(cohort, most):
    with pytest.raises(ConfigError, match=rf"^cohort\.quorum: .*expected at most {most}") as caught:
        Workbench(small_config(*NATURAL, *cohort)).load()
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("sites")
def test_a_quorum_of_all_natural_clients_is_allowed():
    assert len(Workbench(small_config(*NATURAL, "cohort.quorum=3")).load().clients) == 3


@pytest.mark.usefixtures("sites")
def test_ranked_weights_refuse_a_client_with_one_example_by_name():
    with pytest.raises(ConfigError, match=r"^aggregation\.weighting: ranked .* one example only: c02"):
        Workbench(small_config(*NATURAL, *RANKED)).load()


@pytest.mark.usefixtures("sites")
def test_other_weights_allow_a_client_with_one_example():
    Workbench(small_config(*NATURAL, *RANKED, "aggregation.weighting=by_examples")).load()


def test_ranked_weights_plan_for_the_figure_that_clients_then_report(tmp_path):
    staged = stage_round(tmp_path, *RANKED)
    staged.train("c01", "c02")
    assert staged.plan.quality_metric == bench_of(*RANKED).quality_metric == "validation_accuracy"
    assert sorted(staged.look().accepted) == ["c01", "c02"]
