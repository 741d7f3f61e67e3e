"""What a run shows on its page in the Prefect UI: progress and a log line a round, one page of results at the end."""

import base64
import logging
from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from tasks.evaluation.plots import curve, quality_by_bytes
from tasks.rounds.keys import GLOBAL
from tasks.rounds.records import RoundRecord
from tasks.rounds.steps import Judged
from tasks.rounds.summary import RunHandle, RunSummary

MOST_CHANGES = 50
"""Changes of rank listed on a round's page."""
MOST_NAMED = 10
"""Clients named in one line; the store's record and MLflow's clients.json name all."""


class RunPage:
    """The page of one run; used inside its flow.

    Args:
        run: The run.
        num_rounds: Rounds of the run.
        metric: The figure it is judged by.
    """

    def __init__(self, run: RunHandle, num_rounds: int, metric: str) -> None:
        self.run, self.num_rounds, self.metric = run, num_rounds, metric
        progress = create_progress_artifact(0.0, key=f"progress-{run.run_id}", description=f"Rounds of {run.run_id}")
        self._progress: UUID = progress  # pyright: ignore[reportAttributeAccessIssue]  # sync here, never awaited

    def show_round(self, record: RoundRecord, num_done: int) -> None:
        """Move the progress bar on, one request a round, and log the round; what is missing from it is a warning."""
        outcome = f"{record.outcome}, {_quality(record, self.metric)}"
        line = f"Round {record.round_index}: {outcome}; {num_done} of {self.num_rounds} done"
        update_progress_artifact(self._progress, progress=100.0 * num_done / self.num_rounds, description=line)
        level = logging.INFO if record.outcome == "committed" else logging.WARNING
        get_run_logger().log(level, "%s; %s", line, _answers(record))

    def show_result(self, summary: RunSummary, records: list[RoundRecord]) -> None:
        """Leave one page: what came out, the picture of quality by bytes, the round table."""
        create_markdown_artifact(
            result_page(summary, records, self.metric),
            key=f"result-{self.run.run_id}",
            description=f"{summary.outcome} after {summary.rounds} rounds: quality, bytes and rounds",
        )


def show_diagnostics(record: RoundRecord, judged: Sequence[Judged], metric: str) -> None:
    """Leave a page with the round: what happened inside its aggregate, and quality at every rank in use."""
    create_markdown_artifact(
        diagnostics_page(record, judged, metric),
        key=f"round-{record.run_id}-{record.round_index:03d}",
        description=f"Round {record.round_index}: {_quality(record, metric)}",
    )


def diagnostics_page(record: RoundRecord, judged: Sequence[Judged], metric: str) -> str:
    """Return a round's inside as a markdown page, one section a model.

    Args:
        record: The round's record.
        judged: Its new global adapters.
        metric: The figure the run is judged by.
    """
    moved = {direction: record.totals.get(f"{direction}_bytes", 0) for direction in ("uplink", "downlink")}
    sections = [
        f"# {record.run_id}, round {record.round_index}",
        f"Moved so far: {moved['uplink']:,} bytes up, {moved['downlink']:,} bytes down.",
        rank_change_table(record),
    ]
    for one in judged:
        sections += _model_sections(one, metric)
    return "\n\n".join(section for section in sections if section)


def rank_change_table(record: RoundRecord) -> str:
    """Return the ranks that change after a round, each with its reason; empty when none does.

    Args:
        record: The round's record.
    """
    if not record.rank_changes:
        return ""
    rows = [f"| {c.client_id} | {c.old} | {c.new} | {c.reason} |" for c in record.rank_changes[:MOST_CHANGES]]
    rest = len(record.rank_changes) - MOST_CHANGES
    more = ["", f"{rest} more changes: rank-changes.json of the run in MLflow."] if rest > 0 else []
    return "\n".join(
        ["## Ranks from the next round on", "| client | old | new | why |", "|---|---:|---:|---|", *rows, *more]
    )


def _model_sections(one: Judged, metric: str) -> list[str]:
    candidate = one.candidate
    clients = [acceptance.client_id for acceptance in candidate.group.accepted]
    figures = {"aggregation_s": candidate.seconds, **candidate.figures}
    inside = [(name.replace("_", " "), f"{value:.4g}") for name, value in figures.items()]
    mark = f"{metric}_at_rank_"
    ladder = [(f"{metric} at rank {int(n[len(mark) :])}", v) for n, v in one.metrics.items() if n.startswith(mark)]
    if metric in one.metrics:
        ladder.append((f"{metric}, whole", one.metrics[metric]))
    rows = [*inside, *((name, f"{value:.4f}") for name, value in ladder)]
    notes = [f"- {client}: {note}" for client, note in sorted(candidate.notes.items())]
    return [
        f"## {candidate.group.model}, version {one.version}, {len(clients)} clients",
        f"{', '.join(clients[:MOST_NAMED])}{' ...' if len(clients) > MOST_NAMED else ''}",
        "\n".join(["| figure | value |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]),
        "\n".join(notes),
    ]


def result_page(summary: RunSummary, records: list[RoundRecord], metric: str) -> str:
    """Return a run as a markdown page.

    Args:
        summary: The run.
        records: Its records, round 0 first.
        metric: The figure it is judged by.

    Returns:
        What came out in two sentences, the picture, and the round table.
    """
    parts = [_headline(summary), _picture(summary, records, metric), round_table(records, metric)]
    return "\n\n".join(part for part in parts if part)


def round_table(records: list[RoundRecord], metric: str) -> str:
    """Return a markdown table, one row a round; bytes are those moved up to the end of the round.

    Args:
        records: Records of a run, round 0 first.
        metric: The figure it is judged by.
    """
    head = (
        f"| round | outcome | {metric} | accepted | refused | missing | uplink so far [bytes] "
        "| downlink so far [bytes] | version |\n"
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    rows = (
        f"| {r.round_index} | {r.outcome} | {_figure(r, metric)} | {len(r.collection.accepted)} "
        f"| {len(r.collection.refused)} | {len(r.collection.missing)} | {r.totals['uplink_bytes']:,} "
        f"| {r.totals['downlink_bytes']:,} | {_versions(r)} |"
        for r in records[1:]
    )
    return head + "\n".join(rows)


def _headline(summary: RunSummary) -> str:
    url = summary.tracking_url
    where = f"[the run in MLflow]({url})" if url.startswith("http") else f"`{url}`"
    return (
        f"**{summary.run_id}**: {summary.outcome} after {summary.rounds} rounds, model `{summary.model_name}` version "
        f"{summary.model_version}. Bytes saved: {summary.saved_fraction:.1%} against full fine-tuning, "
        f"{summary.saved_fraction_max_rank:.1%} against everyone at the largest rank. More: {where}"
    )


def _picture(summary: RunSummary, records: list[RoundRecord], metric: str) -> str:
    """Return the plot inside the page: an image artifact of its own prints its whole data URI below the picture."""
    points = curve(records, metric)
    if not points.values:
        return ""
    png = base64.b64encode(quality_by_bytes({summary.run_id: points}, metric)).decode()
    return f"![{metric} by bytes moved](data:image/png;base64,{png})"


def _versions(record: RoundRecord) -> str:
    made = {name: model.version for name, model in record.models.items() if model.round_index == record.round_index}
    if list(made) == [GLOBAL]:
        return str(made[GLOBAL])
    return ", ".join(f"{name} v{version}" for name, version in sorted(made.items())) or "none"


def _figure(record: RoundRecord, metric: str) -> str:
    value = record.metrics.get(metric)
    return "none" if value is None else f"{value:.4f}"


def _quality(record: RoundRecord, metric: str) -> str:
    return f"{metric} {_figure(record, metric)}" if metric in record.metrics else "no new adapter"


def _answers(record: RoundRecord) -> str:
    """Say who counted and who did not; long lists are cut, the store's record and MLflow's clients.json have all."""
    collection = record.collection
    refused = [f"{refusal.client_id} ({refusal.reason})" for refusal in collection.refused]
    text = f"{len(collection.accepted)} accepted"
    for what, who in (("refused", refused), ("missing", list(collection.missing))):
        if who:
            text += f", {len(who)} {what}: {', '.join(who[:MOST_NAMED])}{' ...' if len(who) > MOST_NAMED else ''}"
    return text
