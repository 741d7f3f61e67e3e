"""The picture of a run's bill: quality against bytes moved, beside what would have moved otherwise.

Figures are made without any global plotting state; equal inputs give equal bytes.
"""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tasks.evaluation.plots import curve
from tasks.rounds.ledger import COUNTERFACTUALS, MEGABYTE, moved_bytes
from tasks.rounds.records import RoundRecord

_COLOURS = {"full_fine_tuning": "tab:red", "max_rank": "tab:orange", "no_codec": "tab:green"}


def byte_picture(records: Sequence[RoundRecord], metric: str) -> bytes:
    """Draw the quality of a run against the bytes it moved, both ways, on a logarithmic axis.

    Each vertical line marks what the same rounds would have moved otherwise. It has no quality of its own: nobody
    trained that way.

    Args:
        records: Records of a run, round 0 first.
        metric: What the vertical axis shows.

    Returns:
        A PNG [bytes]; empty axes before the first round that moved anything.
    """
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    totals = records[-1].totals if records else {}
    points = curve(records, metric)
    # Round 0 moved nothing, and zero has no place on the axis.
    shown = [(moved / MEGABYTE, value) for moved, value in zip(points.moved_bytes, points.values, strict=True) if moved]
    if shown:
        axes.plot(*zip(*shown, strict=True), marker="o", markersize=4, linewidth=1.8, label=f"moved{_size(totals)}")
    for name in COUNTERFACTUALS:
        if other := totals.get(f"{name}_bytes", 0):
            label = f"{name.replace('_', ' ')}{_size({'uplink_bytes': other})}"
            axes.axvline(other / MEGABYTE, color=_COLOURS[name], linestyle="--", linewidth=1.4, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("bytes moved, uplink and downlink [MB]")
    axes.set_ylabel(f"test {metric.replace('_', ' ')}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # short runs span less than a decade
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _size(totals: dict[str, int]) -> str:
    return f": {moved_bytes(totals) / MEGABYTE:.3g} MB"
