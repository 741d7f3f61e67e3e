"""From the rounds that peers wrote down to figures, and from figures to a table. Runs nothing.

Overhead of a round, the same for every system: wall time of the round (from the end of the round before to its own
end, which comes after the server's evaluation) less the time in which at least one client was inside its training loop.
Where clients run one after the other that is the sum of their times; where they run at once, time in which two overlap
counts once, so that what is done behind a training client's back costs nothing.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rich.table import Table

from tests.bench.rounds import Rounds

SYSTEMS = ("plain loop", "Flower", "Rankweave")
DEFINITION = (
    "Overhead of a round: its wall time (end of the round before to its own end, after the server's evaluation) less "
    "the time in which at least one client was inside its training loop (clients one after the other: the sum; at "
    "once: the union). Median over the rounds after the first of all repeats. Start-up: from starting the process to "
    "the end of the first round, median over repeats."
)


@dataclass(frozen=True)
class Measured:
    """One run of one system.

    Args:
        launched: When its process was started [s, monotonic clock of the machine].
        rounds: What it wrote down.
    """

    launched: float
    rounds: Rounds


@dataclass(frozen=True)
class Figures:
    """One system's figures over all repeats.

    Args:
        overhead_s: Median overhead of a round [s].
        overhead_s_by_repeat: The median of each repeat, to show the spread [s].
        round_s: Median wall time of a round [s].
        training_s: Median training time in a round [s].
        start_up_s: Median time from the start of the process to the end of the first round [s].
        start_up_s_by_repeat: That of each repeat [s].
        accuracy: After the last round.
        loss: After the last round.
    """

    overhead_s: float
    overhead_s_by_repeat: list[float]
    round_s: float
    training_s: float
    start_up_s: float
    start_up_s_by_repeat: list[float]
    accuracy: float
    loss: float


def summarise(runs: Sequence[Measured]) -> Figures:
    """Sum up the repeats of one system; each has at least two rounds."""
    overheads, walls, trainings = [], [], []
    for run in runs:
        ended = run.rounds.ended
        walls.append([end - before for before, end in pairwise(ended)])
        trainings.append(run.rounds.training_s[1:])
        overheads.append([wall - training for wall, training in zip(walls[-1], trainings[-1], strict=True)])
    start_ups = [run.rounds.ended[0] - run.launched for run in runs]
    last = runs[-1].rounds.metrics[-1]
    return Figures(
        overhead_s=_median(overheads),
        overhead_s_by_repeat=[_median([repeat]) for repeat in overheads],
        round_s=_median(walls),
        training_s=_median(trainings),
        start_up_s=_median([start_ups]),
        start_up_s_by_repeat=[round(start_up, 3) for start_up in start_ups],
        accuracy=round(last["accuracy"], 4),
        loss=round(last["loss"], 4),
    )


def section(about: Mapping[str, object], runs: Mapping[str, Sequence[Measured] | str]) -> dict[str, Any]:
    """Sum up one size of work.

    Args:
        about: What the work is.
        runs: System -> its repeats, or why it was not measured.
    """
    figures = {name: run if isinstance(run, str) else summarise(run) for name, run in runs.items()}
    measured = {name: figure for name, figure in figures.items() if isinstance(figure, Figures)}
    ratios = {
        f"overhead to {other}": {
            name: round(figure.overhead_s / measured[other].overhead_s, 3)
            for name, figure in measured.items()
            if name != other
        }
        for other in ("Flower", "plain loop")
        if other in measured
    }
    systems = {
        name: {"not_measured": figure} if isinstance(figure, str) else asdict(figure)
        for name, figure in figures.items()
    }
    return {"work": dict(about), "systems": systems, "ratios": ratios}


def tables(report: Mapping) -> list[Table]:
    """Render a report, one table for each size of work."""
    return [_table(name, part) for name, part in report["sizes"].items()]


def _table(name: str, part: Mapping) -> Table:
    work = part["work"]
    sent, clients = work["trained_parameters"] * 4 / 1e6, work["clients"]
    title = f"{name}: {clients} clients, {work['trained_parameters']:,} trained numbers each ({sent:.3g} MB)"
    table = Table(title=title, title_justify="left")
    table.add_column("system", no_wrap=True)
    for head in ("overhead\na round [s]", "to\nFlower", "to plain\nloop", "round\n[s]", "training\nin it [s]"):
        table.add_column(head, justify="right")
    table.add_column("start-up to end\nof round 1 [s]", justify="right")
    table.add_column("final\naccuracy", justify="right")
    for system, figures in part["systems"].items():
        if reason := figures.get("not_measured"):
            table.add_row(system, f"not measured: {reason}", *[""] * 6)
            continue
        table.add_row(
            system,
            f"{figures['overhead_s']:.3f}",
            _ratio(part["ratios"], "Flower", system),
            _ratio(part["ratios"], "plain loop", system),
            f"{figures['round_s']:.3f}",
            f"{figures['training_s']:.3f}",
            f"{figures['start_up_s']:.1f}",
            f"{figures['accuracy']:.4f}",
        )
    return table


def _ratio(ratios: Mapping, other: str, system: str) -> str:
    value = ratios.get(f"overhead to {other}", {}).get(system)
    return "" if value is None else f"{value:.2f}x"


def _median(repeats: Sequence[Sequence[float]]) -> float:
    return round(statistics.median([value for repeat in repeats for value in repeat]), 4)
