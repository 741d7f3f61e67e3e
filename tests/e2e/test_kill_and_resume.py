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
CHANGES = ["rounds=9", "training.epochs=4"]
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


def rounds_recorded(home):
    return len(list(home.glob("store/runs/*/rounds/*/record.json")))


def wait_for_another_round(home, process):
    """A signalled process may have finished one more round than was waited for: count from what there is."""
    before, end = max(rounds_recorded(home), 1), time.monotonic() + PATIENCE_S
    while rounds_recorded(home) <= before:
        assert process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("prefect_backend", "home")
def test_cancel_then_kill_then_resume_ends_as_the_uninterrupted_run(tmp_path):
    whole = federated_training(small_config(*CHANGES))
    home = tmp_path / "broken"
    cancelled = start(home, "run", *CONFIG)
    wait_for_another_round(home, cancelled)
    cancelled.send_signal(signal.SIGINT)
    code, answer, err = finish(cancelled)
    assert (code, answer["outcome"]) == (7, "cancelled")
    assert "rankweave resume small-" in answer["error"]
    assert "Traceback" not in err
    run_id = answer["error"].split("rankweave resume ")[1].split("`")[0]

    terminated = start(home, "resume", run_id, "--json")
    wait_for_another_round(home, terminated)
    terminated.send_signal(signal.SIGTERM)
    assert finish(terminated)[:2] == (7, answer)

    killed = start(home, "resume", run_id, "--json")
    wait_for_another_round(home, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL

    code, resumed, _ = finish(start(home, "resume", run_id, "--json"))
    assert (code, resumed["outcome"], resumed["rounds"]) == (0, "committed", 9)
    assert resumed["adapter_sha256"] == whole.adapter_sha256
    assert resumed["model_version"] == whole.model_version == 9
    assert resumed["metrics"] == whole.metrics
