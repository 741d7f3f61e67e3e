"""`rankweave compare` from outside: a real plan, the last line, exit codes, and which options belong to what."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import flows.cli
import flows.comparison
from tests.flows.small import OVERRIDES

PATIENCE_S = 280.0
RANKWEAVE = Path(sys.executable).with_name("rankweave")
PLAN = {
    "name": "tiny",
    "base": "digits-staircase",
    "set": [o for o in OVERRIDES if not o.startswith("name=")] + ["evaluation.prefix_ladder=false"],
    "methods": [
        {"name": "rbla", "set": ["aggregation.name=rbla"]},
        {"name": "fedavg-full", "set": ["aggregation.name=fedavg", "ranks.client_fractions=[1.0]"]},
    ],
    "settings": [
        {"name": "up", "target": 0.01},
        # 30 examples in all cannot give 8 clients 5 each: a cell that starts and cannot go on
        {"name": "starved", "set": ["data.limit=30", "data.partition.num_clients=8", "data.partition.min_examples=5"]},
    ],
    "seeds": [0],
}


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["rankweave", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        flows.cli.main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN), encoding="utf8")
    return path


def rankweave(home, *words):
    environment = {**os.environ, "RANKWEAVE_HOME": str(home)}
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RANKWEAVE_STORE", "PREFECT_HOME"):
        environment.pop(name, None)
    words = [RANKWEAVE, "compare", *map(str, words), "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


@pytest.mark.flow
@pytest.mark.timeout(600)
def test_a_plan_runs_fails_where_it_must_and_goes_on_where_it_stopped(plan, tmp_path):
    out = tmp_path / "out"
    code, result, err = rankweave(tmp_path / "home", plan, "--out", out)
    assert (code, result["outcome"]) == (1, "failed")
    assert result["failed"] == ["starved/rbla/seed0", "starved/fedavg-full/seed0"]
    assert "error: cells that failed: starved/rbla/seed0, starved/fedavg-full/seed0" in err
    assert "up/rbla/seed0: round 2 committed" in err
    assert "Traceback" not in err
    methods = result["settings"]["up"]["methods"]
    assert methods["rbla"]["finished"] == methods["fedavg-full"]["finished"] == [0]
    assert 0 < methods["rbla"]["uplink_bytes"]["mean"] < methods["fedavg-full"]["uplink_bytes"]["mean"]
    assert methods["rbla"]["rounds_to_target"] == {"mean": 1.0, "sd": None, "count": 1}
    cell = json.loads((out / "cells/up--rbla--seed0.json").read_text(encoding="utf8"))
    assert cell["points"][-1]["quality"] == cell["summary"]["metrics"]["accuracy"]
    assert cell["points"][-1]["uplink_bytes"] == cell["summary"]["uplink_bytes"]
    assert cell["summary"]["model_name"] == "tiny-up--rbla--seed0"

    code, again, err = rankweave(tmp_path / "home", plan, "--out", out, "--only", "up/")
    assert (code, again["outcome"], again["settings"]) == (0, "committed", result["settings"])
    assert "up/rbla/seed0: finished before, kept" in err
    assert "Watch the run" not in err, "nothing was left to run"


def test_vary_still_compares_values_of_one_field(monkeypatch, capsys, tmp_path):
    asked = {}

    def compare_runs(source, overrides, **rest):
        asked.update(source=source, overrides=overrides, **rest)
        return {"runs": {}, "text": "the table"}

    monkeypatch.setattr(flows.comparison, "compare_runs", compare_runs)
    words = ("compare", "digits-staircase", "--vary", "rounds=1,2", "--set", "seed=3", "--out", tmp_path / "out")
    assert call(monkeypatch, capsys, *words)[:2] == (0, "the table\n")
    expected = {"source": "digits-staircase", "overrides": ["seed=3"], "vary": "rounds=1,2"}
    assert asked == expected | {"out": str(tmp_path / "out")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits-staircase",), "is one experiment; say what to vary (--vary a.b=c,d), or give a plan"),
        (("digits-staircase", "--vary", "rounds"), "is not a field with values"),
        (("digits-staircase", "--vary", "rounds=1", "--only", "x"), "has no cells to choose from; got --only x"),
        (("{plan}", "--vary", "rounds=1"), "names its own methods; got --vary rounds=1; leave it out"),
        (("{plan}", "--only", "flora"), "--only flora: fits no cell"),
        (("{plan}", "--set", "rounds=none"), "cell up/rbla/seed0: 1 problem"),
        (("no-such-plan",), "no such file or preset; expected a YAML file, or a preset: compare_aggregators"),
    ],
)
def test_bad_comparisons_end_in_one_sentence_and_write_nothing(monkeypatch, capsys, tmp_path, plan, *, words, message):
    words = [word.format(plan=plan) for word in words]
    code, out, err = call(monkeypatch, capsys, "compare", *words, "--out", tmp_path / "out", "--json")
    assert code == 2
    assert message in err
    assert json.loads(out)["exit_code"] == 2
    assert not (tmp_path / "out").exists()
