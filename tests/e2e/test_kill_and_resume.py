"""The command line as its user meets it: Ctrl-C, a killed process, and a resume that loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.federated_training import federated_training
from tests.flows.small import OVERRIDES, small_config

pytestmark = [pytest.mark.e2e]

PATIENCE_S = 180.0
RANKWEAVE = Path(sys.executable).with_name("rankweave")
CHANGES = ["rounds=5", "training.epochs=4"]
CONFIG = ["digits-staircase", *(word for o in [*OVERRIDES, *CHANGES] for word in ("--set", o)), "--json"]


def start(home, *words):
    environment = {**os.environ, "RANKWEAVE_HOME": str(home)}
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RANKWEAVE_STORE", "PREFECT_HOME"):
        environment.pop(name, None)
    return subprocess.Popen(
        [RANKWEAVE, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, json.loads(out.strip().splitlines()[-1]), err


def wait_for_round(home, round_index, process):
    end = time.monotonic() + PATIENCE_S
    while not list(home.glob(f"store/runs/*/rounds/{round_index:06d}/record.json")):
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("prefect_backend", "home")
def test_cancel_then_kill_then_resume_ends_as_the_uninterrupted_run(tmp_path):
    whole = federated_training(small_config(*CHANGES))
    home = tmp_path / "broken"
    cancelled = start(home, "run", *CONFIG)
    wait_for_round(home, 1, cancelled)
    cancelled.send_signal(signal.SIGINT)
    code, answer, err = finish(cancelled)
    assert (code, answer["outcome"]) == (7, "cancelled")
    assert "rankweave resume small-" in answer["error"]
    assert "Traceback" not in err
    run_id = answer["error"].split("rankweave resume ")[1].split("`")[0]

    terminated = start(home, "resume", run_id, "--json")
    wait_for_round(home, 2, terminated)
    terminated.send_signal(signal.SIGTERM)
    assert finish(terminated)[:2] == (7, {**answer, "error": answer["error"]})

    killed = start(home, "resume", run_id, "--json")
    wait_for_round(home, 3, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL

    code, resumed, _ = finish(start(home, "resume", run_id, "--json"))
    assert (code, resumed["outcome"], resumed["rounds"]) == (0, "committed", 5)
    assert resumed["adapter_sha256"] == whole.adapter_sha256
    assert resumed["model_version"] == whole.model_version == 5
    assert resumed["metrics"] == whole.metrics
