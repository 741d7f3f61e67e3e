"""A comparison plan, cell after cell in one process: what finished is kept, so that a second start goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from configs.comparison import Cell, ComparisonConfig, common_metrics, expand_locations, load_plan
from configs.experiment import ExperimentConfig
from flows.comparison_report import SettingReport, document, figures
from flows.console import ERR, run_experiment
from infra.object_store import open_store
from infra.run_store import read_records
from tasks.errors import ConfigError, RankweaveError, RecordFormatError, RunCancelledError
from tasks.evaluation.cells import CellResult, mean_curve, round_points
from tasks.evaluation.plots import quality_by_bytes
from tasks.rounds.records import decode, encode, sha256


@dataclass(frozen=True)
class Grid:
    """A plan, ready to run.

    Args:
        plan: What is compared.
        base: What all experiments share, overrides of the command line included.
        folder: Where results go.
    """

    plan: ComparisonConfig
    base: Mapping[str, Any]
    folder: Path

    def experiment(self, cell: Cell) -> ExperimentConfig:
        """Return a cell's config, locations as written."""
        return self.plan.experiment(cell, self.base)

    def path(self, cell: Cell) -> Path:
        """Return where a cell leaves its result."""
        return self.folder / "cells" / f"{cell.slug}.json"

    def found(self, cell: Cell, config: ExperimentConfig) -> CellResult | None:
        """Return what an earlier start left of a cell, if it ran under this config."""
        with suppress(FileNotFoundError, RecordFormatError):  # a damaged file is worth as much as none
            result = decode(CellResult, self.path(cell).read_bytes(), str(self.path(cell)))
            return result if result.config_sha256 == digest(config) else None
        return None


def compare_plan(source: str, overrides: Sequence[str], *, out: str, only: str = "") -> dict[str, Any]:
    """Run the cells of a comparison plan that have not finished yet, and sum up all that have.

    Args:
        source: File or name of a plan.
        overrides: "a.b=c" each, for the base of every cell.
        out: Folder for `comparison.json`, `comparison.md`, a plot for each setting and `cells/`.
        only: Run only cells whose "setting/method/seed" holds this text.

    Returns:
        The figures; "outcome" ("failed" if a cell of this start failed), "failed" (their ids), "text" to print.

    Raises:
        ConfigError: The plan or a cell does not hold; nothing was run.
        RunCancelledError: A person stopped it; finished cells are kept.
    """
    plan = load_plan(source)
    grid = Grid(plan, plan.document(overrides), Path(out))
    chosen = plan.cells(only)
    experiments = _experiments(grid, chosen)
    metrics = common_metrics(experiments)
    absent = _absent(plan)
    _make_folder(grid.folder / "cells", out)
    for name, reason in absent.items():
        ERR.print(f"{name}: left out, {reason}")
    results = {cell: _settle(grid, cell, experiments[cell]) for cell in chosen if cell.setting not in absent}
    failed = [cell.id for cell, result in results.items() if result.outcome == "failed"]
    outcome = {"outcome": "failed" if failed else "committed", "failed": failed}
    return {**outcome, **_write(grid, _reports(grid, experiments, metrics, absent))}


def digest(config: ExperimentConfig) -> str:
    """Return what a finished cell is recognised by: a digest of all that its config says beside the defaults.

    Fields that come to exist later leave it as it is. A default that changes must be told in the changelog.
    """
    return sha256(json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True).encode())


def _experiments(grid: Grid, chosen: Sequence[Cell]) -> dict[Cell, ExperimentConfig]:
    """Check every cell that will run; of the others, only those that hold can have left a result."""
    experiments = {cell: grid.experiment(cell) for cell in chosen}
    for cell in grid.plan.cells():
        with suppress(ConfigError):
            experiments.setdefault(cell, grid.experiment(cell))
    return experiments


def _absent(plan: ComparisonConfig) -> dict[str, str]:
    return {
        setting.name: f"the environment variable {setting.needs_env} is not set"
        for setting in plan.settings
        if setting.needs_env and not os.environ.get(setting.needs_env)
    }


def _make_folder(folder: Path, out: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}", f"cannot be a folder: {error.strerror}", remedy="name another") from error


def _settle(grid: Grid, cell: Cell, config: ExperimentConfig) -> CellResult:
    """Return a cell's result: the one it left if it finished, else that of running it now."""
    found = grid.found(cell, config)
    if found is not None and found.outcome == "finished":
        ERR.print(f"{cell.id}: finished before, kept")
        return found
    result = _run(grid, cell, config)
    partial = grid.path(cell).with_suffix(".partial")
    partial.write_bytes(encode(result))
    partial.replace(grid.path(cell))
    return result


def _run(grid: Grid, cell: Cell, config: ExperimentConfig) -> CellResult:
    variable = grid.plan.setting(cell.setting).needs_env
    located = expand_locations(config, {variable: os.environ.get(variable, "")}, f"cell {cell.id}")
    failed = CellResult(
        setting=cell.setting,
        method=cell.method,
        seed=cell.seed,
        config_sha256=digest(config),
        metric=config.metric,
        outcome="failed",
    )
    try:
        summary = run_experiment(located, label=cell.id)
        points = round_points(read_records(open_store(summary.store_url), summary.run_id), config.metric)
    except RunCancelledError as error:
        remedy = "start the same command again; finished cells are kept"
        raise RunCancelledError(f"comparison {grid.plan.name}", f"was cancelled in {cell.id}", remedy=remedy) from error
    except RankweaveError as error:
        reason = " ".join(str(error).split())
        ERR.print(f"{cell.id}: failed: {reason}")
        return replace(failed, reason=reason)
    return replace(failed, outcome="finished", points=points, summary=summary)


def _reports(
    grid: Grid, experiments: Mapping[Cell, ExperimentConfig], metrics: Mapping[str, str], absent: Mapping[str, str]
) -> list[SettingReport]:
    """Gather every cell that left a result, whichever start it was of."""
    results: dict[tuple[str, str], list[CellResult]] = {}
    for cell, config in experiments.items():
        if found := grid.found(cell, config):
            results.setdefault((cell.setting, cell.method), []).append(found)
    return [
        SettingReport(
            name=setting.name,
            metric=metrics.get(setting.name, ""),
            target=setting.target,
            skipped=absent.get(setting.name, ""),
            results={m.name: results.get((setting.name, m.name), []) for m in grid.plan.methods},
        )
        for setting in grid.plan.settings
    ]


def _write(grid: Grid, reports: Sequence[SettingReport]) -> dict[str, Any]:
    plan, folder = grid.plan, grid.folder
    for report in reports:
        curves = {method: mean_curve(results) for method, results in report.results.items()}
        if drawn := {method: curve for method, curve in curves.items() if curve.values}:
            (folder / report.plot).write_bytes(quality_by_bytes(drawn, report.metric))
    values, text = figures(plan.name, plan.seeds, reports), document(plan.name, plan.seeds, reports)
    (folder / "comparison.json").write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf8")
    (folder / "comparison.md").write_text(text, encoding="utf8")
    return {**values, "text": f"{text}\nTables, figures and plots are in {folder}"}
