"""Pictures a person looks at: quality by bytes moved and by rank kept, coverage and energy of rank slots.

Figures are made without any global plotting state; equal inputs give equal bytes.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from tasks.rounds.ledger import MEGABYTE, moved_bytes
from tasks.rounds.records import RoundRecord

LEAST_ENERGY_SHOWN = 1e-6
"""Share of the energy below which a slot is drawn as empty: there rounding noise would fill the picture."""

MOST_LABELLED = 6
"""Lines up to which each is labelled at its end; more labels would hide each other."""

EMPHASISED = {"color": "tab:red", "linewidth": 2.6, "markersize": 7}


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
        moved_bytes=tuple(moved_bytes(r.totals) for r in scored),
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
        megabytes = [value / MEGABYTE for value in curve.moved_bytes]
        (line,) = axes.plot(megabytes, curve.values, marker=marker, markersize=4, linewidth=1.8, label=label)
        if curve.values and len(curves) <= MOST_LABELLED:
            axes.annotate(
                f"{curve.values[-1]:.3f}",
                (megabytes[-1], curve.values[-1]),
                textcoords="offset points",
                xytext=(6, -3),
                color=line.get_color(),
                fontsize=9,
            )
    _scale_bytes(axes, [curve.moved_bytes[-1] for curve in curves.values() if curve.moved_bytes])
    axes.set_xlabel("bytes moved, uplink and downlink [MB]")
    axes.set_ylabel(_quality(metric))
    axes.margins(x=0.08)
    _tidy(axes)
    if len(curves) <= MOST_LABELLED:
        axes.legend(frameon=False, loc="lower right")
    else:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return _png(figure)


def ladders_of(records: Sequence[RoundRecord], metric: str, max_rank: int) -> dict[str, dict[int, float]]:
    """Return the prefix ladders of a run's first, middle and last judged round.

    Args:
        records: Records of a run, round 0 first.
        metric: The figure.
        max_rank: Rank of the whole adapter.

    Returns:
        "round 5" -> rank -> value; empty where no round was judged at more than one rank.
    """
    mark = f"{metric}_at_rank_"
    ladders = {}
    for record in records:
        found = ((name.removeprefix(mark), value) for name, value in record.metrics.items() if name.startswith(mark))
        rungs = {int(rank): value for rank, value in found if rank.isdigit()}  # not the clusters' own
        if rungs and metric in record.metrics:
            ladders[f"round {record.round_index}"] = {**rungs, max_rank: record.metrics[metric]}
    labels = list(ladders)
    shown = {labels[i]: None for i in (0, len(labels) // 2, -1)} if labels else {}
    return {label: ladders[label] for label in shown}


def prefix_ladder(ladders: Mapping[str, Mapping[int, float]], metric: str) -> bytes:
    """Draw the quality of the global adapter cut to each rank in use: what clients of that rank receive.

    Args:
        ladders: Label -> (rank -> metric), e.g. one per round or per method; the last one is emphasised.
        metric: What the vertical axis shows.

    Returns:
        A PNG [bytes].
    """
    figure = Figure(figsize=(5.6, 4.2), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    last = len(ladders) - 1
    for number, ((label, ladder), marker) in enumerate(zip(ladders.items(), _markers(len(ladders)), strict=True)):
        ranks = sorted(ladder)
        values = [ladder[rank] for rank in ranks]
        style = EMPHASISED if number == last else {"color": _shade(number, last), "linewidth": 1.4, "markersize": 5}
        axes.plot(ranks, values, marker=marker, label=label, **style)
        if number == last:
            _annotate_ends(axes, ranks, values)
    in_use = _legible({rank for ladder in ladders.values() for rank in ladder})
    axes.set_xticks(in_use, [str(rank) for rank in in_use])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rank the global adapter is cut to [slots]")
    axes.set_ylabel(_quality(metric))
    axes.margins(x=0.08, y=0.14)
    _tidy(axes)
    if ladders:
        figure.legend(loc="outside upper center", ncols=min(3, len(ladders)), frameon=False, fontsize=9)
    return _png(figure)


def coverage_and_energy(coverage: Sequence[float], energy: Sequence[float]) -> bytes:
    """Draw, slot by slot, how much of the cohort trained it and how much of the global adapter lies there.

    Slot and singular value of one number are the same thing only where slots are ordered by energy, as after an SVD.

    Args:
        coverage: Per rank slot, the owners' share of the weight, 0 to 1.
        energy: Per singular value, largest first, its share of the squared singular values; drawn on a logarithmic
            scale, as empty below LEAST_ENERGY_SHOWN.

    Returns:
        A PNG [bytes].
    """
    figure = Figure(figsize=(5.6, 4.8), dpi=200, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.bar(range(1, len(coverage) + 1), coverage, width=0.8, color="tab:blue")
    above.set_ylim(0, 1.05)
    above.set_ylabel("coverage\n[share of weight]")
    shown = [share if share >= LEAST_ENERGY_SHOWN else math.nan for share in energy]
    below.bar(range(1, len(energy) + 1), shown, width=0.8, color="tab:orange")
    below.set_yscale("log")
    below.set_ylim(LEAST_ENERGY_SHOWN, 2)
    below.set_ylabel("energy\n[share of squared\nsingular values]")
    below.set_xlabel("rank slot")
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if any(map(math.isnan, shown)):
        text = rf"no bar: below $10^{{{math.log10(LEAST_ENERGY_SHOWN):.0f}}}$"
        below.text(0.99, 0.95, text, transform=below.transAxes, ha="right", va="top", color="0.4", fontsize=9)
    below.set_xlim(0.3, max(len(coverage), len(energy), 1) + 0.7)
    for axes in (above, below):
        _tidy(axes)
        axes.set_axisbelow(True)
    return _png(figure)


def _quality(metric: str) -> str:
    return f"test {metric.replace('_', ' ')}"


def _annotate_ends(axes: Axes, ranks: Sequence[int], values: Sequence[float]) -> None:
    ends = {ranks[0]: values[:2], ranks[-1]: values[:-3:-1]} if ranks else {}
    for rank, (value, *inner) in ends.items():
        # On the side where the line does not come from.
        is_above = not inner or value >= inner[0]
        axes.annotate(
            f"{value:.3f}",
            (rank, value),
            textcoords="offset points",
            xytext=(0, 9 if is_above else -9),
            ha="center",
            va="bottom" if is_above else "top",
            color=EMPHASISED["color"],
        )


def _legible(ranks: Iterable[int]) -> list[int]:
    """Return the ranks whose numbers have room below a logarithmic axis, the largest ones first served."""
    falling = sorted(ranks, reverse=True)
    kept = falling[:1]
    for rank in falling[1:]:
        if math.log(kept[-1] / rank) >= math.log(falling[0] / falling[-1]) / 16:
            kept.append(rank)
    return kept[::-1]


def _shade(number: int, last: int) -> str:
    """Return a grey that darkens from the first line to the last but one."""
    return str(0.75 - 0.45 * number / max(last - 1, 1))


def _tidy(axes: Axes) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _scale_bytes(axes: Axes, totals: Sequence[int]) -> None:
    """Start at no bytes, or go by factors where runs differ by more than ten times: all but one would be one line."""
    if totals and min(totals) > 0 and max(totals) > 10 * min(totals):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)


def _markers(count: int) -> list[str]:
    shapes = "os^Dv<>Ph*X"  # colours repeat after ten, so that the eleventh line differs from the first by its marker
    return [shapes[i % len(shapes)] for i in range(count)]
