"""The picture of ranks: who trained at which rank in which round.

Figures are made without any global plotting state; equal inputs give equal bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasks.rounds.records import RoundRecord

MOST_NUMBERED = 20
"""Clients or rounds up to which every cell tells its rank in figures; more would be too small to read."""


@dataclass(frozen=True, eq=False)
class RankTable:
    """Ranks by client and round.

    Args:
        clients: Client ids, sorted.
        rounds: Round indices.
        ranks: [clients, rounds] rank that each client was to train at, or did where it came back with less.
        took_part: [clients, rounds] whether its update counted.
    """

    clients: tuple[str, ...]
    rounds: tuple[int, ...]
    ranks: np.ndarray
    took_part: np.ndarray


def rank_table(records: Sequence[RoundRecord]) -> RankTable:
    """Return the ranks of a run.

    Args:
        records: Records of a run, round 0 first.
    """
    clients = tuple(sorted(records[0].ranks))
    accepted = [{a.client_id: a.rank for a in record.collection.accepted} for record in records[1:]]
    planned = [record.ranks for record in records[:-1]]
    ranks = [[came.get(client, due[client]) for due, came in zip(planned, accepted, strict=True)] for client in clients]
    took_part = [[client in came for came in accepted] for client in clients]
    shape = (len(clients), len(accepted))
    rounds = tuple(record.round_index for record in records[1:])
    return RankTable(clients, rounds, np.array(ranks, int).reshape(shape), np.array(took_part, bool).reshape(shape))


def rank_picture(table: RankTable) -> bytes:
    """Draw ranks by client and round; pale cells are clients that took no part.

    Args:
        table: At least one client and one round.

    Returns:
        A PNG [bytes].
    """
    height, width = table.ranks.shape
    figure = Figure(figsize=(min(14.0, 2.6 + 0.42 * width), min(10.0, 1.6 + 0.3 * height)), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    smallest, largest = int(table.ranks.min()), int(table.ranks.max())
    norm = LogNorm(max(1, smallest) * 0.999, largest * 1.001)
    picture = axes.imshow(
        table.ranks, aspect="auto", cmap="viridis", norm=norm, alpha=np.where(table.took_part, 1.0, 0.3)
    )
    if max(height, width) <= MOST_NUMBERED:
        for row, column in np.ndindex(height, width):
            rank = int(table.ranks[row, column])
            is_dark = table.took_part[row, column] and norm(rank) < 0.6
            axes.text(column, row, str(rank), ha="center", va="center", fontsize=8, color="w" if is_dark else "k")
        axes.set_yticks(range(height), table.clients, fontsize=8)
    else:
        axes.set_ylabel(f"{height} clients")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    columns = range(0, width, max(1, width // 15))
    axes.set_xticks(columns, [str(table.rounds[column]) for column in columns])
    axes.set_xlabel("round")
    ticks = sorted({smallest, round((smallest * largest) ** 0.5), largest})
    bar = figure.colorbar(picture, ax=axes, label="rank [slots]", ticks=ticks)
    bar.minorticks_off()
    bar.ax.set_yticklabels([str(tick) for tick in ticks])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
