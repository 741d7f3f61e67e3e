"""`python -m tests.bench.peer SYSTEM WORK SIZE OUT`: one run of one system, in a process of its own.

A separate door, so that the peers are imported by name: Ray's workers import Flower's client from there.
"""

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tests.bench.rounds import Rounds

LIBRARIES = {
    "plain loop": ("torch", "numpy", "scikit-learn"),
    "Rankweave": ("torch", "prefect", "mlflow", "peft"),
    "Flower": ("torch", "flwr", "ray", "numpy", "scikit-learn"),
}


def run_system(system: str, work: Path, size: str) -> Rounds:
    """Run one system; imports only what this system needs."""
    if system == "Flower":
        from tests.bench.flower_peer import run_flower

        return run_flower(work)
    from tests.bench.work import load_work

    if system == "plain loop":
        from tests.bench.plain_peer import run_plain

        return run_plain(load_work(work))
    from tests.bench.rankweave_peer import bench_config, run_embedded

    return run_embedded(bench_config(size, load_work(work).spec.rounds))


if __name__ == "__main__":
    name, work_file, size_name, out = sys.argv[1:]
    rounds = run_system(name, Path(work_file), size_name)
    rounds.versions = {library: version(library) for library in LIBRARIES[name]}
    Path(out).write_text(json.dumps(asdict(rounds)), encoding="utf8")
