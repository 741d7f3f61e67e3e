"""Pictures a person looks at: quality by bytes moved. Figures are made without any global plotting state."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from tasks.rounds.records import RoundRecord


@dataclass(frozen=True)
class Curve:
    """One run's quality over its cumulative bytes.

    Args:
        moved_bytes: Bytes moved up to each round [bytes].
        values: The metric after each round.
    """

    moved_bytes: tuple[int, ...]
    values: tuple[float, ...]


def curve(records: Sequence[RoundRecord], metric: str) -> Curve:
    """Return quality by bytes moved, one point a round that has the metric."""
    scored = [record for record in records if metric in record.metrics]
    return Curve(
        moved_bytes=tuple(r.totals["uplink_bytes"] + r.totals["downlink_bytes"] for r in scored),
        values=tuple(r.metrics[metric] for r in scored),
    )


def quality_by_bytes(curves: Mapping[str, Curve], metric: str) -> bytes:
    """Draw quality against cumulative bytes, both ways, one line a run.

    Args:
        curves: Label -> curve.
        metric: What the vertical axis shows.

    Returns:
        A PNG [bytes].
    """
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for (label, curve), marker in zip(curves.items(), _markers(len(curves)), strict=True):
        megabytes = [value / 1e6 for value in curve.moved_bytes]
        (line,) = axes.plot(megabytes, curve.values, marker=marker, markersize=4, linewidth=1.8, label=label)
        if curve.values:
            axes.annotate(
                f"{curve.values[-1]:.3f}",
                (megabytes[-1], curve.values[-1]),
                textcoords="offset points",
                xytext=(6, -3),
                color=line.get_color(),
                fontsize=9,
            )
    axes.set_xlabel("bytes moved, uplink and downlink [MB]")
    axes.set_ylabel(f"test {metric.replace('_', ' ')}")
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    axes.grid(visible=True, alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _markers(count: int) -> list[str]:
    shapes = "os^Dv<>Ph*"
    return [shapes[i % len(shapes)] for i in range(count)]
