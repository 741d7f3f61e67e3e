"""What several folders of tests share: a quiet environment, and Prefect's own backend once a session."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, never whether the code is right.
settings.register_profile("rankweave", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rankweave")

# Set before anything imports the libraries, which read them once.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; small tensors gain nothing from more
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


@pytest.fixture(scope="session")
def prefect_backend() -> Iterator[None]:
    """A real Prefect server with its own database, started once."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh RANKWEAVE_HOME with the embedded store and tracking."""
    monkeypatch.setenv("RANKWEAVE_HOME", str(tmp_path / "home"))
    for name in ("RANKWEAVE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"
