"""What a comparison says in the end: one text, in Markdown that also reads well in a terminal, and plain figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flows.console import size
from tasks.evaluation.cells import CellResult, Spread, Standing, leaders, standing


@dataclass(frozen=True)
class SettingReport:
    """One setting's part.

    Args:
        name: The setting.
        metric: What its runs are judged by.
        target: Value for rounds to target; 0 for none.
        skipped: Why it was left out; empty when it was not.
        results: Method -> what its cells came to, in the plan's order; empty for a method that was not run.
    """

    name: str
    metric: str
    target: float
    skipped: str
    results: Mapping[str, Sequence[CellResult]]

    @property
    def standings(self) -> dict[str, Standing]:
        """Method -> its standing over seeds."""
        return {method: standing(results, target=self.target) for method, results in self.results.items()}

    @property
    def plot(self) -> str:
        """Name of its picture."""
        return f"quality-by-bytes--{self.name}.png"


def figures(name: str, seeds: Sequence[int], reports: Sequence[SettingReport]) -> dict[str, Any]:
    """Return everything as plain values, for `comparison.json`.

    Args:
        name: The comparison.
        seeds: Its seeds.
        reports: Its settings.
    """
    settings = {
        r.name: {
            "metric": r.metric,
            "target": r.target,
            "skipped": r.skipped,
            "methods": {method: msgspec.to_builtins(s, str_keys=True) for method, s in r.standings.items()},
        }
        for r in reports
    }
    return {"name": name, "seeds": list(seeds), "settings": settings}


def document(name: str, seeds: Sequence[int], reports: Sequence[SettingReport]) -> str:
    """Return a comparison as Markdown: the overview, then a table for each setting.

    Args:
        name: The comparison.
        seeds: Its seeds.
        reports: Its settings.
    """
    words = (
        f"Quality after the last round: mean ± sample standard deviation over the seeds {', '.join(map(str, seeds))}; "
        "the best mean in bold, among methods that finished with every seed."
    )
    parts = [f"# {name}", words, _overview(reports, len(seeds))]
    for report in reports:
        parts += [f"## {report.name}", *_setting(report, len(seeds))]
    return "\n\n".join(parts) + "\n"


def _overview(reports: Sequence[SettingReport], num_seeds: int) -> str:
    one_metric = len({r.metric for r in reports}) == 1
    names = [r.name if one_metric else f"{r.name} ({r.metric})" for r in reports]
    header = [f"{reports[0].metric} of" if one_metric else "method", *names]
    columns = [_qualities(r, num_seeds) for r in reports]
    return _table(header, [[method, *(column[method] for column in columns)] for method in reports[0].results])


def _qualities(report: SettingReport, num_seeds: int) -> dict[str, str]:
    standings = report.standings
    best = leaders(standings, report.metric, num_seeds=num_seeds)
    absent = "left out" if report.skipped else "not run"
    texts = {method: _quality(s, num_seeds, absent) for method, s in standings.items()}
    return {method: f"**{text}**" if method in best else text for method, text in texts.items()}


def _quality(s: Standing, num_seeds: int, absent: str) -> str:
    if s.quality is None:
        return "failed" if s.failed else "no figure" if s.finished else absent
    return _spread(s.quality) + ("" if s.quality.count == num_seeds else f" ({s.quality.count} of {num_seeds})")


def _setting(report: SettingReport, num_seeds: int) -> list[str]:
    standings = report.standings
    skipped = [f"Left out: {report.skipped}."] if report.skipped else []
    if not any(s.finished or s.failed for s in standings.values()):
        return skipped or ["Not run yet."]
    to_target = f"rounds to {report.target:g}" if report.target else "rounds to target"
    header = ["method", f"{report.metric}, last round", "best (its round)", to_target, "uplink", "downlink"]
    qualities = _qualities(report, num_seeds)
    rows = [[method, qualities[method], *_row(s, has_target=bool(report.target))] for method, s in standings.items()]
    failed = [
        f"- failed: {report.name}/{method}/seed{seed}: {reason}"
        for method, s in standings.items()
        for seed, reason in s.failed.items()
    ]
    picture = f"![Quality by bytes moved, mean over seeds]({report.plot})"
    return [*skipped, _table(header, rows), *(["\n".join(failed)] if failed else []), picture]


def _row(s: Standing, *, has_target: bool) -> list[str]:
    best = f"{s.best.mean:.4f} ({s.best_round.mean:.1f})" if s.best and s.best_round else "–"
    reached = f"{s.rounds_to_target.count if s.rounds_to_target else 0} of {len(s.finished)} reached"
    rounds = f"{s.rounds_to_target.mean:.1f} ({reached})" if s.rounds_to_target else f"– ({reached})"
    moved = [size(round(b.mean)) if b else "–" for b in (s.uplink_bytes, s.downlink_bytes)]
    return [best, rounds if has_target and s.finished else "–", *moved]


def _spread(value: Spread) -> str:
    return f"{value.mean:.4f}" + ("" if value.sd is None else f" ± {value.sd:.4f}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    top = [header[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(header[1:], widths[1:], strict=True))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [top, rule, *padded])
