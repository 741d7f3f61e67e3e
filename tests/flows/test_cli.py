"""The command line is a contract: exit codes, one JSON object, no traceback, quick help."""

import json
import subprocess
import sys

import pytest
import torch

import flows.cli
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.peft_files import read_adapter, write_adapter
from tasks.adapters.products import dense_product

BASE = {
    "base_model_name_or_path": "base",
    "peft_type": "LORA",
    "task_type": None,
    "target_modules": ["fc"],
    "bias": "none",
}


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["rankweave", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        flows.cli.main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def folder(path, a, b, **changes):
    pair = LoraPair(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    write_adapter(path, LoraAdapter({"fc": pair}), BASE | changes)
    return path


@pytest.fixture
def fixture_f1(tmp_path):
    """The worked example: two clients of ranks 1 and 2, weights 1 and 3."""
    one = folder(tmp_path / "one", [[1, 2]], [[3], [4]])
    two = folder(tmp_path / "two", [[5, 6], [7, 8]], [[1, 0], [0, 2]])
    return one, two


@pytest.mark.parametrize(
    ("method", "product"),
    [("rbla", [[6, 7.5], [18, 21]]), ("zero_pad", [[6, 7.5], [11.875, 14]])],
)
def test_aggregate_gives_the_worked_numbers(monkeypatch, capsys, tmp_path, fixture_f1, method, product):
    one, two = fixture_f1
    words = ("aggregate", "--method", method, "--out", tmp_path / "out", f"{one}=1", f"{two}=3", "--json")
    code, out, _ = call(monkeypatch, capsys, *words)
    assert (code, json.loads(out)["max_rank"]) == (0, 2)
    woven = read_adapter(tmp_path / "out")
    torch.testing.assert_close(dense_product(woven.adapter.pairs["fc"]).float(), torch.tensor(product))
    assert woven.config["base_model_name_or_path"] == "base"
    assert woven.config["lora_alpha"] == woven.config["r"] == 2


def test_aggregate_and_resize_cut_to_a_rank(monkeypatch, capsys, tmp_path, fixture_f1):
    one, two = fixture_f1
    assert (
        call(
            monkeypatch,
            capsys,
            "aggregate",
            "--method",
            "rbla",
            "--rank",
            1,
            "--out",
            tmp_path / "r1",
            f"{one}=1",
            f"{two}=3",
        )[0]
        == 0
    )
    assert (
        call(monkeypatch, capsys, "aggregate", "--method", "rbla", "--out", tmp_path / "r2", f"{one}=1", f"{two}=3")[0]
        == 0
    )
    assert call(monkeypatch, capsys, "resize", tmp_path / "r2", "--rank", 1, "--out", tmp_path / "cut")[0] == 0
    products = [dense_product(read_adapter(tmp_path / name).adapter.pairs["fc"]).float() for name in ("r1", "cut")]
    torch.testing.assert_close(products[0], products[1])
    left, sigma, right = torch.linalg.svd(torch.tensor([[6, 7.5], [18, 21]]))
    torch.testing.assert_close(products[0], sigma[0] * torch.outer(left[:, 0], right[0]))


def test_aggregating_one_adapter_gives_it_back(monkeypatch, capsys, tmp_path, fixture_f1):
    assert (
        call(monkeypatch, capsys, "aggregate", "--method", "fedavg", "--out", tmp_path / "same", f"{fixture_f1[1]}=7")[
            0
        ]
        == 0
    )
    before, after = read_adapter(fixture_f1[1]).adapter.pairs["fc"], read_adapter(tmp_path / "same").adapter.pairs["fc"]
    torch.testing.assert_close(dense_product(before), dense_product(after), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--method", "rbal", "{one}=1"), 2, "aggregator 'rbal': unknown name; expected one of"),
        (("--method", "rbla", "{one}"), 2, "has no usable weight; expected DIR=NUM_EXAMPLES"),
        (("--method", "rbla", "{one}=0"), 2, "has no usable weight"),
        (("--method", "rbla", "{one}=nan"), 2, "has no usable weight"),
        (("--method", "rbla", "{one}=1", "{one}=2"), 2, "the same folder is given twice"),
        (("--method", "fedavg", "{one}=1", "{two}=3"), 2, "fc"),
        (("--method", "rbla", "{one}=1", "{other}=3"), 2, "base_model_name_or_path is not that of"),
        (("--method", "rbla", "{missing}=1"), 2, "missing"),
    ],
)
def test_bad_aggregations_end_in_one_sentence_and_write_nothing(
    monkeypatch, capsys, tmp_path, fixture_f1, *, words, code, message
):
    names = {"one": fixture_f1[0], "two": fixture_f1[1], "missing": tmp_path / "missing"}
    names["other"] = folder(tmp_path / "other", [[1, 2]], [[3], [4]], base_model_name_or_path="another")
    words = [word.format(**names) for word in words]
    ended, out, err = call(monkeypatch, capsys, "aggregate", "--out", tmp_path / "out", *words, "--json")
    assert ended == code
    assert message in err
    assert "Traceback" not in err
    assert json.loads(out)["exit_code"] == code
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_overwritten(monkeypatch, capsys, fixture_f1):
    one, two = fixture_f1
    code, _, err = call(monkeypatch, capsys, "resize", one, "--rank", 1, "--out", two)
    assert (code, "exists already" in err) == (2, True)


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
