"""What a run shows on its page in the Prefect UI: progress while it runs, tables and a picture at the end."""

import base64
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from tasks.evaluation.plots import Curve, quality_by_bytes
from tasks.rounds.records import RoundRecord
from tasks.rounds.summary import RunHandle, RunSummary


class RunPage:
    """The artifacts of one run.

    Args:
        run: The run.
        num_rounds: Rounds of the run.
        metric: The figure it is judged by.
    """

    def __init__(self, run: RunHandle, num_rounds: int, metric: str) -> None:
        self.run, self.num_rounds, self.metric = run, num_rounds, metric
        progress = create_progress_artifact(0.0, key=f"progress-{run.run_id}", description=f"Rounds of {run.run_id}")
        self._progress: UUID = progress  # pyright: ignore[reportAttributeAccessIssue]  # sync here, never awaited

    def show_round(self, record: RoundRecord) -> None:
        """Move the progress bar on; one request a round."""
        value = record.metrics.get(self.metric)
        figure = "no new adapter" if value is None else f"{self.metric} {value:.4f}"
        update_progress_artifact(
            self._progress,
            progress=100.0 * record.round_index / self.num_rounds,
            description=f"Round {record.round_index} of {self.num_rounds}: {record.outcome}, {figure}",
        )

    def show_result(self, summary: RunSummary, records: list[RoundRecord]) -> None:
        """Leave the round table and the picture of quality by bytes."""
        create_markdown_artifact(
            round_table(summary, records, self.metric), key=f"rounds-{self.run.run_id}", description="Rounds"
        )
        picture = base64.b64encode(
            quality_by_bytes({summary.run_id: curve(records, self.metric)}, self.metric)
        ).decode()
        create_image_artifact(
            f"data:image/png;base64,{picture}", key=f"plot-{self.run.run_id}", description="Quality by bytes moved"
        )


def curve(records: list[RoundRecord], metric: str) -> Curve:
    """Return quality by bytes moved, one point a round that has the metric."""
    scored = [record for record in records if metric in record.metrics]
    return Curve(
        moved_bytes=tuple(r.totals["uplink_bytes"] + r.totals["downlink_bytes"] for r in scored),
        values=tuple(r.metrics[metric] for r in scored),
    )


def round_table(summary: RunSummary, records: list[RoundRecord], metric: str) -> str:
    """Return a run as a markdown page: one line that says what came out, then one row a round.

    Args:
        summary: The run.
        records: Its records, round 0 first.
        metric: The figure it is judged by.
    """
    head = (
        f"**{summary.run_id}**: {summary.outcome} after {summary.rounds} rounds, model `{summary.model_name}` version "
        f"{summary.model_version}, {summary.saved_fraction:.1%} of full fine-tuning's bytes saved. "
        f"MLflow: {summary.tracking_url}\n\n"
        f"| round | outcome | {metric} | accepted | refused | missing | uplink [bytes] | downlink [bytes] | version |\n"
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    rows = (
        f"| {r.round_index} | {r.outcome} | {r.metrics.get(metric, float('nan')):.4f} | {len(r.collection.accepted)} "
        f"| {len(r.collection.refused)} | {len(r.collection.missing)} | {r.totals['uplink_bytes']:,} "
        f"| {r.totals['downlink_bytes']:,} | {r.model_version} |"
        for r in records[1:]
    )
    return head + "\n".join(rows)
