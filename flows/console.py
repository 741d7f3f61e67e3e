"""Runs started from a terminal: a progress bar while they run, a table at the end, a summary for scripts."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from configs.experiment import ExperimentConfig
from configs.loading import load_config
from infra.embedded_prefect import embed_prefect
from infra.progress import Progress, watching
from infra.settings import read_settings
from tasks.errors import RunCancelledError
from tasks.rounds.records import TRAINED
from tasks.rounds.summary import RunSummary

ERR = Console(stderr=True)


def run_config(source: str, overrides: Sequence[str], *, quiet: bool = False) -> dict[str, Any]:
    """Run a config to its end.

    Args:
        source: File or preset.
        overrides: "a.b=c" each.
        quiet: Leave out the table.

    Returns:
        The summary's fields, and "text" to print.
    """
    summary = run_experiment(load_config(source, overrides))
    return {**msgspec.to_builtins(summary), "text": "" if quiet else as_text(result_table({summary.run_id: summary}))}


def resume_run(run_id: str, *, quiet: bool = False) -> dict[str, Any]:
    """Go on with a run, under the config it was started with.

    Raises:
        RunNotFoundError: There is no such run.
    """
    from configs.loading import parse_config
    from infra.object_store import open_store
    from infra.run_store import read_run

    spec = read_run(open_store(read_settings().store_url), run_id)
    config = parse_config({**spec.config, "resume_run": run_id}, f"run {run_id}")
    summary = run_experiment(config)
    return {**msgspec.to_builtins(summary), "text": "" if quiet else as_text(result_table({summary.run_id: summary}))}


def run_experiment(config: ExperimentConfig, label: str = "") -> RunSummary:
    """Run one experiment with a progress bar on standard error.

    Args:
        config: The experiment.
        label: What to call it on the bar; its name unless given.

    Raises:
        RunCancelledError: A person stopped it.
    """
    seen = [config.resume_run]
    with _asked_to_stop() as asked:
        address = embed_prefect(read_settings().home)
        from prefect.exceptions import TerminationSignal

        from flows.federated_training import federated_training

        ERR.print(f"Watch the run at {address}")
        try:
            with _progress_bar(label or config.name, config, asked, seen):
                return federated_training(config)
        except (KeyboardInterrupt, TerminationSignal):  # a second signal, or one that came before the first round
            raise _cancelled(seen[-1] or config.name) from None


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Turn Ctrl-C and a termination signal into a wish that the run sees at its next step; a second one ends at once.

    Python's own way, an exception wherever the program happens to be, is lost when that is inside a callback of the
    garbage collector, and dressed up as something else inside a database driver.
    """
    asked = threading.Event()
    before = _catch_signals(asked)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _catch_signals(asked: threading.Event) -> dict[signal.Signals, Any]:
    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            signal.default_int_handler(number, frame)
        asked.set()

    return {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}


def _cancelled(run_id: str) -> RunCancelledError:
    return RunCancelledError(f"run {run_id}", "was cancelled", remedy=f"go on with `rankweave resume {run_id}`")


@contextmanager
def _progress_bar(label: str, config: ExperimentConfig, asked: threading.Event, seen: list[str]) -> Iterator[None]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[quality]}"),
        TextColumn("{task.fields[moved]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=ERR) as bar:
        line = bar.add_task(label, total=config.rounds, quality="starting", moved="")

        done = 0

        def listen(event: Progress) -> None:
            nonlocal done
            if event.stage == "start":
                done = event.rounds_done
            if threading.current_thread() is threading.main_thread():
                _catch_signals(asked)  # again: Prefect puts its own handler in place for the run and each round
            seen.append(event.run_id)
            if asked.is_set():
                raise _cancelled(event.run_id)
            if event.stage == "client":
                bar.update(line, completed=done + 0.999 * event.clients_done / event.clients)
            elif event.stage == "round":
                done += event.outcome in TRAINED
                quality = _quality(event, config.metric)
                bar.update(line, completed=done, quality=quality, moved=size(event.moved_bytes))
                if not ERR.is_terminal:
                    words = f"{event.outcome}, {quality}, {size(event.moved_bytes)}"
                    ERR.print(f"{label}: round {event.round_index} {words}, {done} of {event.num_rounds} done")

        with watching(listen):
            yield


def _quality(event: Progress, metric: str) -> str:
    value = event.metrics.get(metric)
    return "no new adapter" if value is None else f"{metric} {value:.4f}"


def result_table(summaries: dict[str, RunSummary]) -> Table:
    """Return runs as a table, one row each.

    Args:
        summaries: Label -> summary.
    """
    table = Table(title="What came out", title_justify="left")
    for name in ("run", "quality", "uplink", "downlink", "saved against\nfull fine-tuning", "saved against\nmax rank"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    table.add_column("registered version", no_wrap=True)
    for label, summary in summaries.items():
        metric = next((m for m in ("accuracy", "token_accuracy", "loss") if m in summary.metrics), "")
        table.add_row(
            label,
            f"{metric} {summary.metrics[metric]:.4f}" if metric else "none",
            size(summary.uplink_bytes),
            size(summary.downlink_bytes),
            f"{summary.saved_fraction:.1%}",
            f"{summary.saved_fraction_max_rank:.1%}",
            f"{summary.model_name} v{summary.model_version}",
        )
    return table


def as_text(table: Table) -> str:
    """Return a table as plain text for standard output."""
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def size(num_bytes: int) -> str:
    """Return a number of bytes for people."""
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.2f} GB"


def list_runs() -> dict[str, Any]:
    """List the runs in the store."""
    from infra.object_store import open_store
    from infra.run_store import list_run_ids, read_records, read_run

    store = open_store(read_settings().store_url)
    runs = []
    table = Table(title=f"Runs in {store.url}", title_justify="left")
    for name in ("run", "round", "of", "last outcome", "moved"):
        table.add_column(name, justify="left" if name in {"run", "last outcome"} else "right")
    for run_id in list_run_ids(store):
        records = read_records(store, run_id)
        last = records[-1] if records else None
        rounds = read_run(store, run_id).config["rounds"]
        moved = last.totals.get("uplink_bytes", 0) + last.totals.get("downlink_bytes", 0) if last else 0
        outcome = last.outcome if last else "started"
        index = last.round_index if last else 0
        runs.append({"run_id": run_id, "round": index, "rounds": rounds, "last_outcome": outcome, "moved_bytes": moved})
        table.add_row(run_id, str(index), str(rounds), outcome, size(moved))
    return {"runs": runs, "text": as_text(table)}
