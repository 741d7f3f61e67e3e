"""`make bench`: the overhead of a round and the start-up of Rankweave, Flower's simulation engine and a plain loop.

Every run is a process of its own, in an environment without settings of Rankweave, Prefect or MLflow and with one
thread of torch; the systems take turns, so that a busy minute of the machine does not hit one of them alone. A system
that cannot run is reported as not measured, with the reason.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console

from tests.bench.rankweave_peer import SIZES, bench_config, export_work
from tests.bench.report import DEFINITION, SYSTEMS, Measured, section, tables
from tests.bench.rounds import Rounds
from tests.bench.work import Work

ROOT = Path(__file__).parents[2]
FLOWER_PYTHON = ROOT / ".venv-flower" / "bin" / "python"
DEADLINE_S = 600.0
_SETTINGS = ("RANKWEAVE_", "PREFECT_", "MLFLOW_", "RAY_", "FLWR_")

Result = Measured | str


@click.command()
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(min=2), help="Rounds of a run.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="Runs of each system.")
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), help="What to send; all unless given.")
@click.option("--out", default="bench-results/round-overhead.json", show_default=True, type=click.Path(path_type=Path))
def main(rounds: int, repeats: int, sizes: tuple[str, ...], out: Path) -> None:
    """Measure, print a table, and write the figures to a file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    report: dict = {"definition": DEFINITION, "rounds": rounds, "repeats": repeats, **describe_machine()}
    report |= {"versions": {}, "sizes": {}}
    for size in sizes or tuple(SIZES):
        work = export_work(bench_config(size, rounds))
        runs = _measure_size(size, work, repeats, out.parent)
        report["versions"] |= {name: run[0].rounds.versions for name, run in runs.items() if not isinstance(run, str)}
        report["sizes"][size] = section(_describe(work), runs)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf8")
    console = Console(width=120)
    for table in tables(report):
        console.print(table)
    console.print(f"{DEFINITION}\nWritten to {out}", highlight=False)


def _measure_size(size: str, work: Work, repeats: int, folder: Path) -> dict[str, list[Measured] | str]:
    """Run all systems in turn; a system that fails once is not tried again."""
    runs: dict[str, list[Measured] | str] = {system: [] for system in SYSTEMS}
    status = Console(stderr=True)
    # On the disk that the results go to: a temporary folder in memory would spare Rankweave its syncs.
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=folder) as scratch:
        path = Path(scratch).resolve() / "work.npz"
        work.save(path)
        for repeat in range(1, repeats + 1):
            for system in SYSTEMS:
                so_far = runs[system]
                if isinstance(so_far, str):
                    continue
                status.print(f"{size}, run {repeat} of {repeats}: {system}", highlight=False)
                result = measure(system, size, path)
                if isinstance(result, str):
                    runs[system] = result
                else:
                    so_far.append(result)
    return runs


def measure(system: str, size: str, work: Path, *, flower_python: Path = FLOWER_PYTHON) -> Result:
    """Run one system once, in a process of its own.

    Args:
        system: One of `SYSTEMS`.
        size: One of `SIZES`.
        work: The work's file, in a folder to work in.
        flower_python: Python of the environment that holds Flower.

    Returns:
        What it wrote down, or why it could not run.
    """
    python = flower_python if system == "Flower" else Path(sys.executable)
    if not python.exists():
        return f"{python} is not there; `make bench` installs it"
    with tempfile.TemporaryDirectory(prefix="run-", dir=work.parent) as scratch:
        out = Path(scratch) / "rounds.json"
        command = [str(python), "-m", "tests.bench.peer", system, str(work), size, str(out)]
        launched = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=_environment(scratch),
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {DEADLINE_S:.0f} s"
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return lines[-1] if lines else f"exit code {done.returncode}"
        return Measured(launched, Rounds(**json.loads(out.read_text(encoding="utf8"))))


def _environment(home: str) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return kept | {"RANKWEAVE_HOME": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _describe(work: Work) -> dict[str, object]:
    spec = work.spec
    return {
        "data": "scikit-learn digits, dealt out evenly",
        "clients": len(work.clients),
        "train_examples": len(work.train[1]),
        "test_examples": len(work.test[1]),
        "layers": [list(weight.shape) for weight in work.base],
        "ranks": [a.shape[0] for a in work.adapter[::3]],
        "trained_parameters": work.trained_parameters,
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "optimizer": "adam",
        "learning_rate": spec.learning_rate,
        "aggregation": "FedAvg, weighted by examples",
    }


def describe_machine() -> dict[str, object]:
    """Say where and when this is measured, and how busy the machine was before."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "rankweave": version("rankweave"),
            "load_before": round(os.getloadavg()[0], 2),
        },
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
