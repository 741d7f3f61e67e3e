"""That the peers do the same work, and that figures and table follow from what they wrote down; nothing is timed."""

from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.plain_peer import run_plain
from tests.bench.rankweave_peer import bench_config, export_work, run_rankweave
from tests.bench.report import Measured, section, tables
from tests.bench.round_overhead import ROOT, measure
from tests.bench.rounds import Rounds
from tests.bench.work import covered_s, load_work

SMALL = ("data.partition.num_clients=3", "cohort.quorum=3", "model.hidden_sizes=[16]", "ranks.max_rank=4")


@pytest.fixture
def work():
    return export_work(bench_config("tiny", 2, *SMALL))


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_plain_loop_and_rankweave_end_every_round_with_the_same_model(work):
    plain, ours = run_plain(work), run_rankweave(bench_config("tiny", 2, *SMALL))
    for peer in (plain, ours):
        assert len(peer.ended) == len(peer.training_s) == len(peer.metrics) == 2
        assert all(
            0 < t < after - before for t, (before, after) in zip(peer.training_s[1:], pairwise(peer.ended), strict=True)
        )
    for theirs, mine in zip(plain.metrics, ours.metrics, strict=True):
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs, rel=1e-4)


def test_plain_loop_learns(work):
    first, second = run_plain(work).metrics
    assert second["loss"] < first["loss"]


def test_work_survives_its_file(work, tmp_path):
    work.save(tmp_path / "work.npz")
    loaded = load_work(tmp_path / "work.npz")
    assert loaded.spec == work.spec
    assert [a.tobytes() for a in (*loaded.adapter, *loaded.base, *loaded.clients, loaded.seeds, *loaded.test)] == [
        a.tobytes() for a in (*work.adapter, *work.base, *work.clients, work.seeds, *work.test)
    ]


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0.0),
        ([(1.0, 3.0), (3.0, 4.0)], 3.0),
        ([(1.0, 3.0), (2.0, 4.0)], 3.0),
        ([(5.0, 6.0), (1.0, 4.0), (2.0, 3.0)], 4.0),
    ],
)
def test_time_in_which_two_clients_train_at_once_counts_once(spans, seconds):
    assert covered_s(spans) == seconds


def run_of(ended, training_s):
    metrics = [{"accuracy": 0.5, "macro_f1": 0.4, "loss": 1.0}] * len(ended)
    return Measured(launched=10.0, rounds=Rounds(ended, training_s, metrics, {"torch": "2"}))


def fixed_section():
    # Rounds of 2 s with 1.75 and 1.5 s of training; the first round is left out.
    plain = [run_of([11.0, 13.0, 15.0], [0.5, 1.75, 1.75])]
    ours = [run_of([14.0, 16.0, 18.0], [0.5, 1.5, 1.5]), run_of([16.0, 18.0, 20.0], [0.5, 1.5, 1.5])]
    about = {"clients": 10, "trained_parameters": 1690}
    return section(about, {"plain loop": plain, "Flower": "no module named flwr", "Rankweave": ours})


def test_overhead_is_wall_time_less_training_over_the_rounds_after_the_first():
    systems = fixed_section()["systems"]
    assert (systems["plain loop"]["overhead_s"], systems["plain loop"]["start_up_s"]) == (0.25, 1.0)
    assert systems["Rankweave"]["overhead_s"] == 0.5
    assert (systems["Rankweave"]["round_s"], systems["Rankweave"]["training_s"]) == (2.0, 1.5)
    assert systems["Rankweave"]["start_up_s_by_repeat"] == [4.0, 6.0]


def test_ratios_leave_out_what_was_not_measured():
    part = fixed_section()
    assert part["ratios"] == {"overhead to plain loop": {"Rankweave": 2.0}}
    assert part["systems"]["Flower"] == {"not_measured": "no module named flwr"}


def test_table_shows_figures_and_says_what_was_not_measured():
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        for table in tables({"sizes": {"tiny": fixed_section()}}):
            console.print(table)
    rows = {line.split()[1]: " ".join(line.split()) for line in capture.get().splitlines() if line.startswith("│")}
    assert "0.500 │ │ 2.00x │ 2.000 │ 1.500 │ 5.0 │ 0.5000" in rows["Rankweave"]
    assert "not measured" in rows["Flower"]


def test_peer_whose_environment_is_missing_is_not_measured(tmp_path):
    answer = measure("Flower", "tiny", tmp_path / "work.npz", flower_python=tmp_path / "python")
    assert answer == f"{tmp_path / 'python'} is not there; `make bench` installs it"


def test_peer_that_fails_is_not_measured_and_says_why(tmp_path):
    assert "FileNotFoundError" in str(measure("plain loop", "tiny", tmp_path / "missing.npz"))


def test_flower_gets_the_versions_that_rankweave_has():
    def pins(path: Path) -> set[str]:
        lines = path.read_text(encoding="utf8").splitlines()
        return {line for line in lines if line.startswith(("torch==", "numpy==", "scikit-learn=="))}

    assert pins(ROOT / "tests" / "bench" / "requirements-flower.txt") == pins(ROOT / "constraints.txt")
