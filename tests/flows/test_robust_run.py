"""One client uploads its update times a million: what each robust rule makes of the round, and where it says so."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

import tasks.train_client
from configs.workbench import Workbench
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import read_adapter, read_records
from infra.settings import read_settings
from tasks.adapters.lora import LoraAdapter
from tasks.aggregate_updates import aggregate_updates
from tasks.close_round import RoundResult, close_round
from tasks.errors import ConfigError
from tasks.rounds.steps import Judged, one_group
from tests.flows.small import small_config
from tests.flows.staged import CLIENTS, Staged, stage_round

HOSTILE, TIMES = "c00", 1e6
EVEN = ("data.partition.name=iid", "cohort.quorum=5")
RULES = ["norm_clip", "krum", "multi_krum", "geometric_median", "coordinate_median", "trimmed_mean"]
FACTOR = 1.0
"""A guarded aggregate lies no further from the honest one than this many times the longest honest change."""


def hostile(update, start):
    """The change that training made, times a million: of products by factor b, of dense tensors by their distance."""
    pairs = {path: replace(pair, b=TIMES * pair.b) for path, pair in update.pairs.items()}
    dense = {name: start.dense[name] + TIMES * (tensor - start.dense[name]) for name, tensor in update.dense.items()}
    return LoraAdapter(pairs, dense)


def vector(adapter):
    """The adapter as one point: all products and dense tensors, in float64."""
    products = [
        pair.scaling * pair.b.double().numpy() @ pair.a.double().numpy() for _, pair in sorted(adapter.pairs.items())
    ]
    dense = [tensor.double().numpy() for _, tensor in sorted(adapter.dense.items())]
    return np.concatenate([part.ravel() for part in (*products, *dense)])


@dataclass(frozen=True)
class Round:
    """A trained round.

    Args:
        staged: The round.
        size: Length of the longest honest change of an adapter.
    """

    staged: Staged
    size: float

    def with_rule(self, rule, folder):
        """The same uploads under another rule, in a folder of their own: no plan rests on the rule."""
        copy = self.staged.copy(folder)
        return replace(copy, bench=Workbench(small_config(*EVEN, f"aggregation.robust={rule}")))


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWEAVE_HOME", str(tmp_path_factory.mktemp("home")))
        staged = stage_round(tmp_path_factory.mktemp("robust") / "store", *EVEN)
        staged.train(*CLIENTS)
    changes = [np.linalg.norm(vector(staged.update(c)) - vector(staged.share(c))) for c in CLIENTS]
    return Round(staged, float(max(changes)))


def aggregated(staged):
    """Aggregate what has come in."""
    collection = staged.look().close()
    (group,) = one_group(collection).groups
    candidate = aggregate_updates.fn(staged.run, staged.plan, group, staged.initial, staged.bench)
    return collection, candidate, vector(read_adapter(staged.store, staged.run.run_id, candidate.adapter))


def attacked(honest, rule, folder):
    staged = honest.with_rule(rule, folder)
    staged.send(HOSTILE, hostile(staged.update(HOSTILE), staged.share(HOSTILE)))
    return staged


@pytest.fixture
def reference(honest, tmp_path):
    return aggregated(honest.staged.copy(tmp_path / "honest"))[2]


@pytest.mark.parametrize("rule", RULES)
def test_one_hostile_update_moves_a_guarded_aggregate_no_further_than_the_bound(tmp_path, honest, reference, rule):
    staged = attacked(honest, rule, tmp_path / "store")
    collection, candidate, moved = aggregated(staged)
    assert [acceptance.client_id for acceptance in collection.accepted] == CLIENTS, "admission lets it pass"
    assert np.linalg.norm(moved - reference) <= FACTOR * honest.size
    consensus = {"coordinate_median", "trimmed_mean"}  # these look at coordinates, and name nobody for them
    assert (HOSTILE in candidate.notes) == (rule not in consensus)


def test_without_a_rule_one_hostile_update_moves_the_aggregate_as_far_as_it_likes(tmp_path, honest, reference):
    _, candidate, moved = aggregated(attacked(honest, "none", tmp_path / "store"))
    assert np.linalg.norm(moved - reference) > 1e3 * FACTOR * honest.size
    assert candidate.notes == {}


@pytest.mark.parametrize(
    ("rule", "note"),
    [
        ("norm_clip", r"clipped to .* of its norm; dense tensors drawn to"),
        ("krum", r"left out: its score is"),
        ("multi_krum", r"left out: its score is"),
        ("geometric_median", r"counts for .* of its weight"),
    ],
)
def test_the_note_says_what_was_done_and_honest_clients_have_none(tmp_path, honest, rule, note):
    _, candidate, _ = aggregated(attacked(honest, rule, tmp_path / "store"))
    assert pytest.approx(1.0) == sum(candidate.weights.values())
    assert re.match(note, candidate.notes[HOSTILE])
    if rule != "krum":  # which keeps one update and leaves out the others
        assert set(candidate.notes) == {HOSTILE}


@pytest.mark.parametrize("rule", ["norm_clip", "geometric_median"])
def test_a_degraded_round_is_guarded_as_well(monkeypatch, tmp_path, honest, rule):
    staged = attacked(honest, rule, tmp_path / "store")
    for found in staged.store.list(staged.keys.uplinks + "c03/"):
        staged.store.delete(found.key)

    class Tracker:
        def log_round(self, round_index, metrics):
            assert round_index == 1
            assert metrics["clients_missing"] == 1.0

        def log_json(self, name, obj):
            assert name.startswith("diagnostics/")

    monkeypatch.setattr("tasks.close_round.open_tracker", lambda *_args, **_kwargs: Tracker())
    collection, candidate, moved = aggregated(staged)
    result = RoundResult(staged.same_ranks, (Judged(candidate, {}, 1),))
    record = close_round.fn(staged.run, staged.plan, collection, staged.initial, staged.bench, result=result)
    assert record.outcome == "degraded"
    assert list(record.notes) == [HOSTILE]
    rest = [vector(staged.update(client)) for client in record.weights if client != HOSTILE]
    assert np.linalg.norm(moved - np.mean(rest, axis=0)) <= FACTOR * honest.size


def test_krum_below_its_cohort_refuses_rather_than_guess(tmp_path, honest):
    """A run cannot get here: its quorum must be what the rule needs."""
    staged = attacked(honest, "krum", tmp_path / "store")
    for found in staged.store.list(staged.keys.uplinks + "c03/"):
        staged.store.delete(found.key)
    with pytest.raises(ConfigError, match=r"^robust rule krum: .* got 4 updates; expected 5 or more"):
        aggregated(staged)
    with pytest.raises(ConfigError, match=r"cohort\.quorum: krum needs 5 updates or more"):
        small_config("aggregation.robust=krum", "cohort.quorum=4")


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_a_run_under_attack_learns_and_names_the_client(monkeypatch):
    train = tasks.train_client.LocalWork.train

    def attack(work, start, effort):
        trained = train(work, start, effort)
        return replace(trained, adapter=hostile(trained.adapter, start)) if work.client_id == HOSTILE else trained

    monkeypatch.setattr(tasks.train_client.LocalWork, "train", attack)
    summary = federated_training(small_config(*EVEN, "aggregation.robust=multi_krum"))
    records = read_records(open_store(summary.store_url), summary.run_id)
    assert [list(record.notes) for record in records] == [[], [HOSTILE], [HOSTILE]]
    assert records[-1].notes[HOSTILE].startswith("left out: its score is")
    assert summary.metrics["accuracy"] > 0.2, "ten digits, and one client out of five is hostile"

    client: Any = mlflow.MlflowClient(read_settings().mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`rankweave.run_id` = '{summary.run_id}'")
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "clients.json")).read_text(encoding="utf8"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    noted = {(row["round"], row["client"]): row["note"] for row in rows if row["note"]}
    assert noted == {(t, HOSTILE): records[t].notes[HOSTILE] for t in (1, 2)}
