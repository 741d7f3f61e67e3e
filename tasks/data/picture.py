"""A partition as a picture: one bar per client, one colour per label."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.data.partitions import Partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

MAX_LEGEND = 20
MAX_COUNTS_SHOWN = 40
MAX_NAMES_SHOWN = 100
MAX_NAME = 24


def plot_partition(partition: Partition, labels: np.ndarray | None, label_names: Sequence[str], path: Path) -> None:
    """Draw how many examples of which label each client holds, and write it as a PNG file.

    Args:
        partition: Who holds which rows.
        labels: [N] label numbers; None for data without labels, drawn in one colour.
        label_names: Name of each label number.
        path: The file to write, replaced if it exists.
    """
    # The object interface: pyplot keeps every figure in module state and may look for a screen.
    from matplotlib.figure import Figure

    counts = label_counts(partition, labels, len(label_names))
    num_clients, num_labels = counts.shape
    legend_rows = num_labels if 1 < num_labels <= MAX_LEGEND else 0
    height = float(np.clip(1.2 + 0.26 * max(num_clients, legend_rows), 2.6, 16))  # [inches]
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.add_subplot()
    _draw_bars(axes, counts, _palette(num_labels))
    _label_clients(axes, partition, counts.sum(axis=1))
    if num_labels > MAX_LEGEND:
        _add_label_scale(axes, num_labels)
    elif labels is not None:
        _add_legend(axes, label_names)
    figure.savefig(path, format="png", dpi=120)


def label_counts(partition: Partition, labels: np.ndarray | None, num_labels: int) -> np.ndarray:
    """Count the examples of each label that each client holds.

    Args:
        partition: Who holds which rows.
        labels: [N] label numbers, or None.
        num_labels: Number of label numbers there are.

    Returns:
        [clients, labels] counts, clients in the order of the partition; one column if there are no labels.
    """
    if labels is None:
        return np.array([[len(rows)] for rows in partition.indices.values()])
    return np.stack([np.bincount(labels[rows], minlength=num_labels) for rows in partition.indices.values()])


def _palette(num_labels: int) -> "Colormap":
    from matplotlib import colormaps

    if num_labels > MAX_LEGEND:
        return colormaps["turbo"].resampled(num_labels)
    return colormaps["tab10" if num_labels <= 10 else "tab20"]


def _draw_bars(axes: "Axes", counts: np.ndarray, palette: "Colormap") -> None:
    # One collection per client: a hundred clients with 150 labels would be 15,000 separate bars.
    for place, widths in enumerate(counts):
        held = np.flatnonzero(widths)
        starts = (np.cumsum(widths) - widths)[held]
        axes.broken_barh(list(zip(starts, widths[held], strict=True)), (place - 0.41, 0.82), facecolors=palette(held))
    totals = counts.sum(axis=1)
    axes.set_xlim(0, 1.1 * totals.max())
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlabel("examples")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{len(counts):,} clients, {totals.sum():,} examples", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _label_clients(axes: "Axes", partition: Partition, totals: np.ndarray) -> None:
    names = [
        f"{client} {_short(partition.origins[client])}" if client in partition.origins else client
        for client in partition.indices
    ]
    step = -(-len(names) // MAX_NAMES_SHOWN)
    is_roomy = len(names) <= MAX_COUNTS_SHOWN
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=9 if is_roomy else 6)
    axes.tick_params(axis="y", length=0)
    if is_roomy:
        for place, total in enumerate(totals):
            axes.annotate(f"{total:,}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _add_legend(axes: "Axes", label_names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    palette = _palette(len(label_names))
    keys = [Patch(color=palette(number), label=_short(name)) for number, name in enumerate(label_names)]
    axes.legend(handles=keys, title="label", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _add_label_scale(axes: "Axes", num_labels: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, num_labels - 1), _palette(num_labels))
    axes.figure.colorbar(scale, ax=axes, label="label number", pad=0.02)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
