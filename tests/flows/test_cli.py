"""The command line is a contract: exit codes, one JSON object, no traceback, quick help."""

import json
import subprocess
import sys

from tests.flows.terminal import call


def test_bad_config_names_the_field_and_exits_with_2_before_anything_is_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANKWEAVE_HOME", str(tmp_path / "home"))
    code, out, err = call(monkeypatch, capsys, "run", "digits-staircase", "--set", "ranks.max_rnk=2", "--json")
    assert (code, json.loads(out)["outcome"]) == (2, "failed")
    assert "ranks.max_rnk: there is no such field; did you mean 'max_rank'" in err
    assert not (tmp_path / "home").exists()


def test_unknown_run_is_named(monkeypatch, capsys, home):
    code, _, err = call(monkeypatch, capsys, "resume", "digits-00000000")
    assert (code, "run 'digits-00000000': is not in" in err) == (2, True)


def test_usage_errors_exit_with_2(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "aggregate")[0] == 2
    assert call(monkeypatch, capsys, "no-such-command")[0] == 2


def test_status_of_an_empty_store_lists_nothing(monkeypatch, capsys, home):
    code, out, _ = call(monkeypatch, capsys, "status", "--json")
    assert (code, json.loads(out)) == (0, {"runs": []})


def test_doctor_finds_a_working_machine_healthy_and_a_broken_store_not(monkeypatch, capsys, home):
    code, out, _ = call(monkeypatch, capsys, "doctor", "--json")
    assert (code, json.loads(out)["healthy"]) == (0, True)
    monkeypatch.setenv("RANKWEAVE_STORE", "ftp://nowhere")
    code, out, _ = call(monkeypatch, capsys, "doctor", "--json")
    broken = [f for f in json.loads(out)["findings"] if not f["healthy"]]
    assert (code, [f["subject"] for f in broken]) == (1, ["store"])
    assert broken[0]["remedy"]


def test_help_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['rankweave', '--help']\n"
        "import flows.cli\n"
        "try:\n    flows.cli.main()\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'torch', 'prefect', 'mlflow', 'transformers', 'pydantic', 'boto3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert "Exit codes" in done.stdout
