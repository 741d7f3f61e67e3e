"""`rankweave ...`: a thin door to the flows, nothing of its own.

Only click is imported here; every command imports what it needs when it runs, so that `--help` is quick.
Standard output carries results (with --json, one object as the last line); progress and errors go to standard error.
"""

import json
import sys
from typing import Any, NoReturn, cast

import click

from tasks.errors import RankweaveError

EXIT_CODES = """\b
Exit codes:
  0  done as promised
  1  failed
  2  bad usage or config
  3  byte budget spent: stopped before its last round, with what it had
  4  gate not passed (reserved)
  5  quorum not met
  6  conflict with what is already there
  7  cancelled; `rankweave resume RUN_ID` goes on
"""
BUDGET_SPENT = 3
CANCELLED = 7

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
overrides = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field of the config.")


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rankweave")
def cli() -> None:
    """Federated LoRA fine-tuning as a workflow: mixed ranks, crash-safe rounds, a bill of bytes."""


@cli.command()
@click.argument("config")
@overrides
@as_json
def run(config: str, overrides: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001  # click passes flags so
    """Run CONFIG, a YAML file or the name of a preset, to its end."""
    from flows.console import run_config

    _end(run_config(config, list(overrides), quiet=as_json), as_json=as_json)


@cli.command()
@click.argument("run_id")
@as_json
def resume(run_id: str, as_json: bool) -> None:  # noqa: FBT001  # click passes flags so
    """Go on with RUN_ID after a crash, a cancel or a lost quorum."""
    from flows.console import resume_run

    _end(resume_run(run_id, quiet=as_json), as_json=as_json)


@cli.command()
@as_json
def status(as_json: bool) -> None:  # noqa: FBT001  # click passes flags so
    """List the runs in the store and how far they are."""
    from flows.console import list_runs

    _print(list_runs(), as_json=as_json)


@cli.command()
@click.argument("run_id")
@click.option("--by", type=click.Choice(["round", "client", "kind"]), default="round", help="What rows stand for.")
@click.option("--csv", "csv_file", default="", type=click.Path(dir_okay=False), help="Write the bill's lines here.")
@click.option("--plot", default="", type=click.Path(dir_okay=False), help="Draw quality against bytes here, as a PNG.")
@as_json
def ledger(run_id: str, by: str, csv_file: str, plot: str, as_json: bool) -> None:  # noqa: FBT001  # click passes flags so
    """Show what the clients of RUN_ID moved, and what would have moved otherwise; also while it runs."""
    from flows.ledger import show_ledger

    _print(show_ledger(run_id, by=by, csv_file=csv_file, plot=plot), as_json=as_json)


@cli.command()
@click.argument("config", metavar="PLAN|CONFIG")
@click.option("--vary", default="", metavar="A.B=C,D,...", help="For a config: the field to vary and its values.")
@click.option(
    "--only", default="", metavar="TEXT", help="For a plan: run only cells whose setting/method/seed has TEXT."
)
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for the plots and the figures.")
@overrides
@as_json
def compare(config: str, vary: str, only: str, out: str, overrides: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001  # click
    """Run every cell of PLAN (methods by settings by seeds), or CONFIG once for each value of one field.

    Draws quality by bytes. Cells of a plan that finished before are kept, so that a second start goes on.
    """
    from flows.comparison import compare

    result = compare(config, list(overrides), vary=vary, only=only, out=out)
    failed = cast("list[str]", result.get("failed", []))
    _print(result, as_json=as_json)
    if failed:
        click.echo(f"error: cells that failed: {', '.join(failed)}", err=True)
        sys.exit(1)


@cli.command()
@click.option("--method", required=True, help="Name of an aggregator, e.g. rbla.")
@click.option("--rank", type=click.IntRange(min=1), help="Rank of the result; the one the method gives unless given.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the aggregator.")
@click.option("--robust", default="", help="Name of a robust rule, e.g. geometric_median.")
@click.option("--robust-option", "robust_options", multiple=True, metavar="NAME=VALUE", help="An option of that rule.")
@click.option("--out", required=True, type=click.Path(), help="New folder for the result.")
@click.argument("adapters", nargs=-1, required=True, metavar="DIR=NUM_EXAMPLES...")
@as_json
def aggregate(out: str, adapters: tuple[str, ...], as_json: bool, **recipe: Any) -> None:  # noqa: FBT001  # click passes flags so
    """Weave PEFT adapter folders of different ranks into one, offline."""
    from flows.offline import Recipe, aggregate_folders

    _print(aggregate_folders(Recipe(**recipe), list(adapters), out=out), as_json=as_json)


@cli.command()
@click.argument("adapter", metavar="DIR")
@click.option("--rank", required=True, type=click.IntRange(min=1), help="Rank of the result.")
@click.option("--out", required=True, type=click.Path(), help="New folder for the result.")
@as_json
def resize(adapter: str, rank: int, out: str, as_json: bool) -> None:  # noqa: FBT001  # click passes flags so
    """Write the best rank-R approximation of a PEFT adapter folder, or extend it with empty slots."""
    from flows.offline import resize_folder

    _print(resize_folder(adapter, rank=rank, out=out), as_json=as_json)


@cli.command()
@click.argument("run_id")
@click.option(
    "--client", "clients", multiple=True, help="Only this client; all that trained on this machine otherwise."
)
@as_json
def fuse(run_id: str, clients: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001  # click passes flags so
    """Join the personal adapters that a run left on this machine with its global one."""
    from flows.fusing import fuse_run

    _print(fuse_run(run_id, clients), as_json=as_json)


@cli.command()
@as_json
def doctor(as_json: bool) -> None:  # noqa: FBT001  # click passes flags so
    """Say what is missing on this machine and how to mend it."""
    from flows.doctor import examine

    report = examine()
    _print(report, as_json=as_json)
    if not report["healthy"]:
        sys.exit(1)


def _print(result: dict[str, object], *, as_json: bool) -> None:
    text = result.pop("text", "")
    if as_json:
        click.echo(json.dumps(result, sort_keys=True))
    elif text:
        click.echo(text)


def _end(summary: dict[str, object], *, as_json: bool) -> None:
    """Print how a run ended, and end with the code for it."""
    _print(summary, as_json=as_json)
    if summary["outcome"] == "byte_budget":
        sys.exit(BUDGET_SPENT)


def main() -> NoReturn:
    """Run the command line; what a user can cause ends in one sentence and an exit code, never in a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("cancelled", CANCELLED)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except RankweaveError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("cancelled", CANCELLED)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    if "--json" in sys.argv:
        outcome = {5: "quorum_not_met", 6: "conflict", 7: "cancelled"}.get(code, "failed")
        click.echo(json.dumps({"outcome": outcome, "error": message, "exit_code": code}, sort_keys=True))
    sys.exit(code)
