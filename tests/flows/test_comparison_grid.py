"""A comparison plan cell by cell: what is kept, what runs again, what a failure or a missing variable leaves behind.

Runs are played by a stand-in that knows its figures at once; `test_comparison.py` has a real one.
"""

import json
from types import SimpleNamespace

import msgspec
import pytest
import yaml

import flows.comparison_grid
from flows.comparison import compare
from tasks.errors import ConfigError, RunCancelledError, TrainingDivergedError
from tasks.rounds.summary import RunSummary

PLAN = {
    "name": "tiny",
    "base": "digits-staircase",
    "set": ["rounds=2"],
    "methods": [
        {"name": "rbla", "set": ["aggregation.name=rbla"]},
        {"name": "zero_pad", "set": ["aggregation.name=zero_pad"]},
    ],
    "settings": [{"name": "up", "target": 0.6}],
    "seeds": [0, 1],
}
ELSEWHERE = {
    "name": "idx",
    "needs_env": "SOME_DATA",
    "set": ["data.source=idx", "data.location=${SOME_DATA}/mnist"],
}
QUALITY = {"rbla": 0.8, "zero_pad": 0.5}
BLANK = {str: "", int: 0, float: 0.0}


def summary(run_id):
    """A summary with nothing but its id: fields of one kind are alike."""
    fields = msgspec.structs.fields(RunSummary)
    return RunSummary(**{f.name: BLANK.get(f.type, {}) for f in fields} | {"run_id": run_id})


def records(config):
    """Two rounds; quality is the method's, a little more with every seed and round."""
    return [
        SimpleNamespace(
            round_index=index,
            outcome="committed",
            metrics={"accuracy": QUALITY[config.aggregation.name] + 0.1 * (index - 2) + 0.02 * config.seed},
            totals={"uplink_bytes": 1_000_000 * index, "downlink_bytes": 2_000_000 * index},
        )
        for index in (1, 2)
    ]


def unpadded(text):
    return " ".join(text.split())


class Runs:
    """Stands for running experiments: remembers which were asked for, fails where told to."""

    def __init__(self):
        self.labels, self.configs, self.errors = [], [], {}

    def run(self, config, label=""):
        self.labels.append(label)
        self.configs.append(config)
        if label in self.errors:
            raise self.errors[label]
        return summary(label)

    def read_records(self, store, run_id):
        return records(self.configs[self.labels.index(run_id)])


@pytest.fixture
def runs(monkeypatch):
    stand_in = Runs()
    monkeypatch.setattr(flows.comparison_grid, "run_experiment", stand_in.run)
    monkeypatch.setattr(flows.comparison_grid, "read_records", stand_in.read_records)
    monkeypatch.setattr(flows.comparison_grid, "open_store", lambda url: None)
    return stand_in


@pytest.fixture
def start(tmp_path, runs):
    def start(*overrides, only="", **changes):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN | changes), encoding="utf8")
        runs.labels.clear()
        runs.configs.clear()
        return compare(str(tmp_path / "plan.yaml"), overrides, vary="", only=only, out=str(tmp_path / "out"))

    return start


def test_every_cell_runs_once_and_the_tables_say_what_came_out(start, runs, tmp_path):
    result = start()
    assert runs.labels == ["up/rbla/seed0", "up/rbla/seed1", "up/zero_pad/seed0", "up/zero_pad/seed1"]
    assert [config.seed for config in runs.configs] == [0, 1, 0, 1]
    assert (result["outcome"], result["failed"]) == ("committed", [])
    told = json.loads((tmp_path / "out/comparison.json").read_text(encoding="utf8"))
    rbla = told["settings"]["up"]["methods"]["rbla"]
    # 0.80 and 0.82: mean 0.81, deviations 0.01, variance 2 * 0.0001 / 1
    assert rbla["quality"] == {"mean": pytest.approx(0.81), "sd": pytest.approx(0.0002**0.5), "count": 2}
    assert rbla["rounds_to_target"]["mean"] == 1.0
    assert told["settings"]["up"]["methods"]["zero_pad"]["rounds_to_target"] is None
    assert set(told["settings"]) == set(result["settings"]) == {"up"}
    assert (tmp_path / "out/comparison.md").read_text(encoding="utf8") in result["text"]
    text = unpadded(result["text"])
    assert "| **0.8100 ± 0.0141** |" in text
    assert "0.8100 (2.0) | 1.0 (2 of 2 reached) | 2.00 MB | 4.00 MB |" in text
    assert "| – (0 of 2 reached) |" in text
    assert (tmp_path / "out/quality-by-bytes--up.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_leaves_its_rounds_its_summary_and_the_digest_of_its_config(start, tmp_path):
    start()
    cell = json.loads((tmp_path / "out/cells/up--rbla--seed1.json").read_text(encoding="utf8"))
    assert [(p["round_index"], round(p["quality"], 2), p["uplink_bytes"]) for p in cell["points"]] == [
        (1, 0.72, 1_000_000),
        (2, 0.82, 2_000_000),
    ]
    assert cell["summary"]["run_id"] == "up/rbla/seed1"
    assert len(cell["config_sha256"]) == 64
    assert (cell["outcome"], cell["metric"], cell["method"], cell["seed"]) == ("finished", "accuracy", "rbla", 1)


def test_a_second_start_keeps_what_finished(start, runs):
    first = start()
    second = start()
    assert runs.labels == []
    assert second == first


def test_a_changed_config_runs_again_and_only_where_it_changed(start, runs):
    start()
    slower = {"name": "rbla", "set": ["aggregation.name=rbla", "training.optimizer.learning_rate=0.001"]}
    start(methods=[slower, PLAN["methods"][1]])
    assert runs.labels == ["up/rbla/seed0", "up/rbla/seed1"]
    start("training.epochs=1")
    assert len(runs.labels) == 4


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json"])
def test_a_damaged_result_runs_again(start, runs, tmp_path, damage):
    start()
    (tmp_path / "out/cells/up--rbla--seed0.json").write_bytes(damage)
    start()
    assert runs.labels == ["up/rbla/seed0"]


def test_a_failed_cell_is_told_with_its_reason_and_the_others_go_on(start, runs, tmp_path):
    runs.errors["up/zero_pad/seed0"] = TrainingDivergedError("client c03", "loss is nan;\nstep 7", remedy="go slower")
    result = start()
    assert len(runs.labels) == 4
    assert (result["outcome"], result["failed"]) == ("failed", ["up/zero_pad/seed0"])
    text = unpadded((tmp_path / "out/comparison.md").read_text(encoding="utf8"))
    assert "- failed: up/zero_pad/seed0: client c03: loss is nan; step 7; go slower" in text
    assert "| 0.5200 (1 of 2) |" in text
    runs.errors.clear()
    assert start()["outcome"] == "committed"
    assert runs.labels == ["up/zero_pad/seed0"], "a failed cell has not finished"


def test_a_method_that_always_fails_stands_in_the_table(start, runs):
    for seed in (0, 1):
        runs.errors[f"up/rbla/seed{seed}"] = TrainingDivergedError("client c00", "loss is nan")
    text = unpadded(start()["text"])
    assert text.count("| rbla | failed |") == 2, "in the overview and in its setting"
    assert "**0.5100" in text, "the best of those that finished"


def test_cancelling_ends_the_comparison_and_the_next_start_goes_on(start, runs):
    runs.errors["up/rbla/seed1"] = RunCancelledError("run x", "was cancelled")
    with pytest.raises(RunCancelledError, match="was cancelled in up/rbla/seed1; start the same command again"):
        start()
    assert runs.labels == ["up/rbla/seed0", "up/rbla/seed1"]
    runs.errors.clear()
    start()
    assert runs.labels == ["up/rbla/seed1", "up/zero_pad/seed0", "up/zero_pad/seed1"]


def test_nothing_runs_and_nothing_is_written_when_any_cell_does_not_hold(start, runs, tmp_path):
    methods = [*PLAN["methods"], {"name": "fedavg", "set": ["aggregation.name=fedavg"]}]
    with pytest.raises(ConfigError, match="cell up/fedavg/seed0"):
        start(methods=methods)
    assert runs.labels == []
    assert not (tmp_path / "out").exists()


def test_only_runs_part_and_the_tables_gather_all_parts(start, runs):
    part = start(only="up/zero_pad")
    assert runs.labels == ["up/zero_pad/seed0", "up/zero_pad/seed1"]
    assert "not run" in part["text"]
    whole = start(only="/rbla/")
    assert runs.labels == ["up/rbla/seed0", "up/rbla/seed1"]
    assert "not run" not in whole["text"]
    assert [m["finished"] for m in whole["settings"]["up"]["methods"].values()] == [(0, 1), (0, 1)]


def test_a_setting_whose_variable_is_not_set_is_left_out_with_the_reason(start, runs, monkeypatch, capsys):
    monkeypatch.delenv("SOME_DATA", raising=False)
    result = start(settings=[*PLAN["settings"], ELSEWHERE])
    assert not any(label.startswith("idx/") for label in runs.labels)
    reason = "the environment variable SOME_DATA is not set"
    assert result["settings"]["idx"]["skipped"] == reason
    assert f"Left out: {reason}." in result["text"]
    assert f"idx: left out, {reason}" in capsys.readouterr().err
    assert result["outcome"] == "committed"


def test_a_variable_fills_in_the_location_but_not_the_result(start, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_DATA", "/here")
    start(settings=[ELSEWHERE])
    assert {config.data.location for config in runs.configs} == {"/here/mnist"}
    assert "/here" not in (tmp_path / "out/cells/idx--rbla--seed0.json").read_text(encoding="utf8")
    monkeypatch.setenv("SOME_DATA", "/there")
    start(settings=[ELSEWHERE])
    assert runs.labels == [], "the same data in another place"


def test_an_out_that_is_a_file_is_refused_before_anything_runs(start, runs, tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf8")
    with pytest.raises(ConfigError, match=r"--out .* cannot be a folder"):
        start()
    assert runs.labels == []
