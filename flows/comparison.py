"""Several runs side by side: a comparison plan, or one config with one field varied."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from configs.experiment import ExperimentConfig
from configs.loading import is_plan, load_config, load_document
from flows.comparison_grid import compare_plan
from flows.console import ERR, as_text, result_table, run_experiment
from infra.object_store import open_store
from infra.run_store import read_records
from infra.settings import Settings, read_settings
from tasks.errors import ConfigError
from tasks.rounds.summary import RunSummary


def compare(source: str, overrides: Sequence[str], *, vary: str, only: str, out: str) -> dict[str, Any]:
    """Run a comparison plan, or a config once for each value of a field.

    Args:
        source: File or preset of either kind.
        overrides: "a.b=c" each, for all runs.
        vary: "a.b=c,d" for a config; empty for a plan, which names its own methods.
        only: For a plan: part of the ids of the cells to run; empty for all.
        out: Folder for what comes out.

    Returns:
        The figures, and "text" to print.

    Raises:
        ConfigError: What was asked for does not fit the source, or a config does not hold; nothing was run.
    """
    if is_plan(load_document(source)):
        if vary:
            raise ConfigError(f"plan {source}", "names its own methods", got=f"--vary {vary}", remedy="leave it out")
        return compare_plan(source, overrides, out=out, only=only)
    if not vary:
        raise ConfigError(
            f"config {source}", "is one experiment", remedy="say what to vary (--vary a.b=c,d), or give a plan"
        )
    if only:
        raise ConfigError(f"config {source}", "has no cells to choose from", got=f"--only {only}", expected="a plan")
    return compare_runs(source, overrides, vary=vary, out=out)


def compare_runs(source: str, overrides: Sequence[str], *, vary: str, out: str) -> dict[str, Any]:
    """Run a config once for each value of a field.

    Args:
        source: File or preset.
        overrides: "a.b=c" each, for all runs.
        vary: "a.b=c,d": the field and its values.
        out: Folder for `quality-by-bytes.png`, `partition.png` and `comparison.json`.

    Returns:
        Summaries by value, and "text" to print.

    Raises:
        ConfigError: `vary` is not of that form, or a value does not fit.
    """
    variants = _variants(source, overrides, vary)
    settings = read_settings()  # before the runs, which leave the address of a server of their own behind
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}", f"cannot be a folder: {error.strerror}", remedy="name another") from error
    summaries = {value: run_experiment(config, label=value) for value, config in variants.items()}
    config = next(iter(variants.values()))
    plot = _draw(folder, summaries, config)
    figures = {value: msgspec.to_builtins(summary) for value, summary in summaries.items()}
    (folder / "comparison.json").write_text(json.dumps(figures, indent=2, sort_keys=True), encoding="utf8")
    ERR.print()
    text = "\n".join([as_text(result_table(summaries)), "", *_where_to_look(settings, summaries, plot)])
    return {"runs": figures, "plot": str(plot), "text": text}


def _variants(source: str, overrides: Sequence[str], vary: str) -> dict[str, ExperimentConfig]:
    """Check all variants before the first one runs; each gets its own model in the registry."""
    field, equals, values = vary.partition("=")
    names = [value for value in values.split(",") if value]
    if not equals or len(names) < 1:
        raise ConfigError(f"--vary {vary}", "is not a field with values", expected="section.field=value,value")
    base = load_config(source, overrides)
    return {
        name: load_config(source, [*overrides, f"{field}={name}", f"publishing.model_name={base.model_name}-{name}"])
        for name in names
    }


def _draw(folder: Path, summaries: dict[str, RunSummary], config: ExperimentConfig) -> Path:
    from configs.workbench import Workbench
    from tasks.data.picture import plot_partition
    from tasks.evaluation.plots import curve, quality_by_bytes

    store = open_store(read_settings().store_url)
    curves = {label: curve(read_records(store, s.run_id), config.metric) for label, s in summaries.items()}
    path = folder / "quality-by-bytes.png"
    path.write_bytes(quality_by_bytes(curves, config.metric))
    bench = Workbench(config)
    if bench.raw.train.labels is not None:
        plot_partition(bench.partition, bench.raw.train.labels, bench.raw.label_names, folder / "partition.png")
    return path


def _where_to_look(settings: Settings, summaries: dict[str, RunSummary], plot: Path) -> list[str]:
    first = next(iter(summaries.values()))
    prefect = settings.prefect_api_url or f"PREFECT_HOME={settings.home.resolve() / 'prefect'} prefect server start"
    return [
        "Where to look",
        f"  plot      {plot}",
        f"  data      {plot.parent / 'partition.png'}",
        f"  MLflow    {first.tracking_url}",
        f"  Prefect   {prefect}",
        f"  adapters  {first.store_url}",
    ]
