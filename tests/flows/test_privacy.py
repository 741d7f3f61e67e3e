"""Runs that hide their clients: drawn in secret, clipped, noised once, and stopped by the budget."""

import pytest

from configs.privacy_desk import PrivacyDesk
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import read_adapter, read_records
from infra.server_secret import server_secret
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import adapter_distance
from tasks.aggregate_updates import aggregate_updates
from tasks.errors import ConfigError
from tasks.evaluate_adapter import evaluate_adapter
from tasks.plan_round import plan_round
from tasks.rounds.keys import GLOBAL
from tasks.rounds.steps import one_group
from tests.flows.small import small_config
from tests.flows.staged import Staged, bench_of, stage_round

HIDING = (
    "privacy.mode=clients",
    "aggregation.weighting=uniform",
    "aggregation.name=zero_pad",
    "evaluation.diagnostics=false",
    "cohort.quorum=1",
)
ALMOST_NO_NOISE = (*HIDING, "privacy.noise_multiplier=0.01", "privacy.clip_norm=1e-6", "privacy.target_epsilon=0")

REFUSED = [
    ("aggregation.name=rbla", "aggregation.name: the noise is made for the means of fedavg, zero_pad, ffa"),
    ("aggregation.weighting=by_examples", "aggregation.weighting: weights move the sum by more than the clip"),
    ("aggregation.robust=norm_clip", "aggregation.robust: a robust rule looks at single updates"),
    ("aggregation.clusters.enabled=true", "aggregation.clusters: clusters compare single updates"),
    ("cohort.overshoot=1", "cohort.overshoot: who takes part is drawn once and for all"),
    ("cohort.quorum=2", "cohort.quorum: a round must not tell by failing that few were drawn"),
    ("ranks.schedulers=[capability]", "ranks.schedulers: ranks must not tell who took part"),
    ("cohort.byte_budget_mb=5", "cohort.byte_budget_mb: a run must not tell by its end how many were drawn"),
    ("evaluation.diagnostics=true", "evaluation.diagnostics: they show figures of single updates"),
]


@pytest.mark.parametrize(("override", "reason"), REFUSED)
def test_what_the_noise_does_not_cover_is_refused(override, reason):
    with pytest.raises(ConfigError) as caught:
        small_config(*HIDING, override)
    assert reason in str(caught.value)


def test_a_budget_that_the_first_round_breaks_is_refused_before_anything_is_written():
    desk = PrivacyDesk(bench_of(*HIDING, "privacy.target_epsilon=0.5"))
    with pytest.raises(
        ConfigError, match=r"privacy.target_epsilon: one round alone would spend more; got 0.5; expected"
    ):
        desk.check()


def test_what_is_spent_rises_with_the_rounds_and_falls_where_few_are_drawn():
    everyone = PrivacyDesk(bench_of(*HIDING))
    few = PrivacyDesk(bench_of(*HIDING, "cohort.cohort_size=1"))
    assert everyone.rate == 1.0
    assert few.rate == 0.2
    assert 0.0 < few.spent(1) < everyone.spent(1) < everyone.spent(2)
    assert everyone.figures(2) == {"epsilon": everyone.spent(2)}
    assert PrivacyDesk(bench_of()).figures(2) == {}


def candidate_of(staged: Staged):
    (group,) = one_group(staged.look().close()).groups
    return aggregate_updates.fn(staged.run, staged.plan, group, staged.initial, staged.bench)


def test_a_round_that_is_aggregated_again_shows_the_same_noise(tmp_path):
    staged = stage_round(tmp_path / "store", *HIDING)
    staged.train("c00", "c01")
    first = candidate_of(staged)
    assert candidate_of(staged).adapter == first.adapter


def test_two_runs_draw_different_noise(tmp_path):
    template = stage_round(tmp_path / "one", *HIDING)
    template.train("c00", "c01")
    other = template.copy(tmp_path / "two")
    assert candidate_of(template).adapter.sha256 != candidate_of(other).adapter.sha256


def test_a_tiny_clip_keeps_the_adapter_where_it_was(tmp_path):
    """One huge update moves the sum by the clip, whatever it holds."""
    staged = stage_round(tmp_path / "store", *ALMOST_NO_NOISE)
    staged.train("c00", "c02")
    update = staged.update("c02")
    huge = {path: LoraPair(pair.a, pair.b * 1e6) for path, pair in update.pairs.items()}
    staged.send("c02", LoraAdapter(huge, update.dense))
    made = read_adapter(staged.store, "small-1", candidate_of(staged).adapter)
    before = read_adapter(staged.store, "small-1", staged.initial.models[GLOBAL])
    assert 0.0 < adapter_distance(made, before) < 1e-3


def test_who_is_drawn_follows_from_a_secret_and_is_fixed_by_the_plan(tmp_path, monkeypatch):
    drawn = []
    for home in "aabcdefghi":
        monkeypatch.setenv("RANKWEAVE_HOME", str(tmp_path / home))
        staged = stage_round(tmp_path / f"store-{len(drawn)}", *HIDING, "cohort.cohort_size=2")
        drawn.append([invitation.client_id for invitation in staged.plan.invitations])
        assert plan_round.fn(staged.run, 1, staged.initial, staged.bench).plan == staged.plan
        assert staged.plan.cohort_size == max(1, len(drawn[-1])), "it waits for all that were drawn"
    assert drawn[0] == drawn[1]
    assert len({tuple(clients) for clients in drawn}) > 1


def test_a_secret_stays_and_differs_between_runs(tmp_path):
    assert server_secret(tmp_path, "run-1") == server_secret(tmp_path, "run-1")
    assert server_secret(tmp_path, "run-1") != server_secret(tmp_path, "run-2")


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_a_run_stops_when_the_next_round_would_break_the_budget():
    desk = PrivacyDesk(bench_of(*HIDING))
    summary = federated_training(small_config(*HIDING, "rounds=5", f"privacy.target_epsilon={desk.spent(2) + 1e-6}"))
    assert (summary.outcome, summary.rounds) == ("privacy_budget", 2)
    records = read_records(open_store(summary.store_url), summary.run_id)
    assert [record.metrics.get("epsilon") for record in records[1:]] == [desk.spent(1), desk.spent(2)]


def test_the_noised_factor_is_the_one_that_is_sent(tmp_path):
    staged = stage_round(tmp_path / "store", *HIDING, "aggregation.name=ffa")
    staged.train("c00", "c01")
    made = read_adapter(staged.store, "small-1", candidate_of(staged).adapter)
    before = read_adapter(staged.store, "small-1", staged.initial.models[GLOBAL])
    for path, pair in made.pairs.items():
        assert pair.a.equal(before.pairs[path].a)
        assert not pair.b.equal(before.pairs[path].b)


def test_a_round_into_which_nobody_was_drawn_counts_and_looks_like_any_other(tmp_path):
    staged = stage_round(tmp_path / "store", *HIDING)
    assert staged.plan.quorum == 0
    candidate = candidate_of(staged)
    made = read_adapter(staged.store, "small-1", candidate.adapter)
    before = read_adapter(staged.store, "small-1", staged.initial.models[GLOBAL])
    assert candidate.weights == {}
    assert made.ranks == before.ranks
    assert all(not pair.b.equal(before.pairs[path].b) for path, pair in made.pairs.items())
    assert evaluate_adapter.fn(staged.plan, candidate, staged.url, staged.bench)["accuracy"] >= 0.0


def test_nobody_comes_back_smaller_and_a_round_waits_for_all(tmp_path):
    staged = stage_round(tmp_path / "store", *HIDING, "cohort.deadline_s=77", "cohort.grace_s=5")
    assert staged.plan.equal_ranks
    assert PrivacyDesk(staged.bench).grace_s == 77
    assert PrivacyDesk(bench_of("cohort.deadline_s=77", "cohort.grace_s=5")).grace_s == 5


def test_a_budget_without_limit_is_still_told_before_anything_is_trained(monkeypatch):
    def missing(**_):
        raise ConfigError("privacy", "needs Opacus")

    monkeypatch.setattr("configs.privacy_desk.epsilon", missing)
    with pytest.raises(ConfigError, match="needs Opacus"):
        PrivacyDesk(bench_of(*HIDING, "privacy.target_epsilon=0")).check()
    PrivacyDesk(bench_of()).check()
