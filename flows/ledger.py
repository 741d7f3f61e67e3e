"""A run's bill of bytes: who moved what, in which round, and what would have moved otherwise."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.loading import parse_config
from flows.console import as_text
from infra.booking import booked, booked_fusions
from infra.object_store import ObjectStore, open_store
from infra.run_store import find_record, read_records, read_run
from infra.settings import read_settings
from tasks.errors import ConfigError
from tasks.evaluation.byte_picture import byte_picture
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import COUNTERFACTUALS, LedgerLine, exceeding, moved_bytes, of_round, saved_fraction
from tasks.rounds.records import RoundPlan, RoundRecord

_FIELDS = ("round_index", "client_id", "attempt", "direction", "what", "num_bytes")


def show_ledger(run_id: str, *, by: str = "round", csv_file: str = "", plot: str = "") -> dict[str, Any]:
    """Read a run's bill, whether it has ended or not.

    Args:
        run_id: The run.
        by: What a row of the table stands for: "round", "client" or "kind".
        csv_file: Where to write every line; empty for nowhere.
        plot: Where to draw quality against bytes; empty for nowhere.

    Returns:
        Rows and totals, and "text" to print. Totals hold everything that is known to have moved; the savings are
        those of closed rounds, because only they know what would have moved otherwise.

    Raises:
        RunNotFoundError: There is no such run.
        ConfigError: A file cannot be written.
    """
    store = open_store(read_settings().store_url)
    config = parse_config(read_run(store, run_id).config, f"run {run_id}")
    records = read_records(store, run_id)
    closed = list(_closed(records))
    lines = [*closed, *_not_closed(store, run_id, records), *(booked_fusions(store, records[-1]) if records else ())]
    if csv_file:
        _write(csv_file, _as_csv(lines))
    if plot:
        _write(plot, byte_picture(records, config.metric))
    rows, totals = _rows(lines, by), records[-1].totals if records else {}
    moved = {f"{way}_bytes": _sum(lines, direction=way) for way in ("uplink", "downlink")}
    otherwise = {name: totals.get(f"{name}_bytes", 0) for name in COUNTERFACTUALS}
    saved = {name: round(saved_fraction(totals, name), 4) for name in COUNTERFACTUALS}
    beyond = moved_bytes(moved) - moved_bytes(totals)
    text = "\n\n".join([as_text(_table(run_id, by, rows)), as_text(_savings(totals)), _footnote(beyond)])
    facts = {"run_id": run_id, "rounds_closed": max(0, len(records) - 1), "beyond_closed_rounds_bytes": beyond}
    return {**facts, **moved, "rows": rows, "otherwise_bytes": otherwise, "saved_frac": saved, "text": text}


def _closed(records: Sequence[RoundRecord]) -> Iterator[LedgerLine]:
    for record in records:
        yield from of_round(record.collection.ledger, record.round_index)


def _not_closed(store: ObjectStore, run_id: str, records: Sequence[RoundRecord]) -> list[LedgerLine]:
    """Book what came after the last round was closed, and what has come of the round under way."""
    known = list(_closed(records[-1:]))
    lines: list[LedgerLine] = []
    for round_index in (len(records) - 1, len(records)):
        plan = find_record(store, RoundKeys(run_id, round_index).plan, RoundPlan) if round_index > 0 else None
        lines += [] if plan is None else exceeding(booked(store, plan), known)
    return lines


def _rows(lines: Iterable[LedgerLine], by: str) -> list[dict[str, Any]]:
    groups: dict[Any, list[LedgerLine]] = {}
    for line in lines:
        key = {"round": line.round_index, "client": line.client_id, "kind": line.what}[by]
        groups.setdefault(key, []).append(line)
    return [
        {
            by: key,
            "attempts": len({(line.round_index, line.client_id, line.attempt) for line in group}),
            "uplink_bytes": _sum(group, direction="uplink"),
            "downlink_bytes": _sum(group, direction="downlink"),
        }
        for key, group in sorted(groups.items())
    ]


def _sum(lines: Iterable[LedgerLine], *, direction: str) -> int:
    return sum(line.num_bytes for line in lines if line.direction == direction)


def _table(run_id: str, by: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"What clients of {run_id} moved, in bytes", title_justify="left", show_footer=True)
    sums = [sum(row[f"{way}_bytes"] for row in rows) for way in ("uplink", "downlink")]
    table.add_column(by, "all")
    for name, foot in (("attempts", ""), ("uplink", _bytes(sums[0])), ("downlink", _bytes(sums[1]))):
        table.add_column(name, foot, justify="right")
    table.add_column("both", _bytes(sum(sums)), justify="right")
    for row in rows:
        up, down = row["uplink_bytes"], row["downlink_bytes"]
        table.add_row(str(row[by]), str(row["attempts"]), _bytes(up), _bytes(down), _bytes(up + down))
    return table


def _savings(totals: dict[str, int]) -> Table:
    table = Table(title="Instead, in closed rounds", title_justify="left")
    for name in ("instead", "bytes", "saved"):
        table.add_column(name, justify="left" if name == "instead" else "right")
    for name in COUNTERFACTUALS:
        other = totals.get(f"{name}_bytes", 0)
        table.add_row(name.replace("_", " "), _bytes(other), f"{saved_fraction(totals, name):.1%}" if other else "none")
    return table


def _bytes(num_bytes: int) -> str:
    return f"{num_bytes:,}"


def _footnote(beyond_bytes: int) -> str:
    late = (
        f" {_bytes(beyond_bytes)} bytes moved outside closed rounds: under way, late, or to fuse."
        if beyond_bytes
        else ""
    )
    return f"Bodies of objects between clients and the bucket; no headers, listings or traffic of the server.{late}"


def _as_csv(lines: Iterable[LedgerLine]) -> bytes:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows([getattr(line, name) for name in _FIELDS] for line in lines)
    return written.getvalue().encode()


def _write(path: str, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise ConfigError(
            f"file {path}", f"cannot be written: {error.strerror or error}", remedy="name one in a folder of yours"
        ) from error
