"""How far apart clients' updates were when they met, smoothed over rounds; who is absent keeps what is known of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.robust.geometry import squared_distances
from tasks.errors import ConfigError, NonFiniteUpdateError, RecordFormatError

Pair = tuple[str, str]
"""Two client ids in sorted order."""


@dataclass(frozen=True)
class Meeting:
    """What is remembered of two clients.

    Args:
        distance: Their distance, smoothed over rounds.
        count: Rounds in which both were there.
    """

    distance: float
    count: int


@dataclass(frozen=True)
class DistanceMemory:
    """How far apart clients' updates have been.

    Args:
        meetings: Two client ids in sorted order -> what is remembered of them.
    """

    meetings: Mapping[Pair, Meeting] = field(default_factory=dict)

    def to_rows(self) -> tuple[tuple[str, str, float, int], ...]:
        """Return the memory as plain values for a record, in sorted order."""
        return tuple((*pair, meeting.distance, meeting.count) for pair, meeting in sorted(self.meetings.items()))

    @staticmethod
    def from_rows(rows: Iterable[tuple[str, str, float, int]]) -> "DistanceMemory":
        """Rebuild a memory from a record.

        Args:
            rows: As `to_rows` gives them, in any order.

        Raises:
            RecordFormatError: A pair occurs twice or out of order, or a value is no distance or no count.
        """
        meetings: dict[Pair, Meeting] = {}
        for left, right, distance, count in rows:
            if (left, right) in meetings or left >= right or not (math.isfinite(distance) and distance >= 0 < count):
                raise RecordFormatError(
                    f"distance of {left} and {right}", "cannot be restored", got=f"{distance} seen {count} times",
                    expected="one row per pair, ids in order, a finite distance of 0 or more, seen once or more",
                )  # fmt: skip
            meetings[left, right] = Meeting(distance, count)
        return DistanceMemory(meetings)


def round_distances(changes: Mapping[str, LoraAdapter]) -> dict[Pair, float]:
    """Return how far apart a round's updates are, as products, whatever their ranks and gauges.

    Args:
        changes: Client id -> what its training changed; finite.

    Returns:
        Two client ids in sorted order -> distance; empty for fewer than two clients.
    """
    clients = sorted(changes)
    squares = squared_distances([changes[client] for client in clients]) if clients else ()
    return {
        (left, right): math.sqrt(max(0.0, float(squares[i][j])))
        for i, left in enumerate(clients)
        for j, right in enumerate(clients)
        if i < j
    }


def observe(previous: DistanceMemory, distances: Mapping[Pair, float], *, kappa: float = 0.2) -> DistanceMemory:
    r"""Move the distances of pairs that met in a round towards what the round showed.

    $S_{uv} \leftarrow (1 - \kappa) S_{uv} + \kappa d_{uv}$; a pair that meets for the first time starts at $d_{uv}$.

    Args:
        previous: What was remembered; not written to.
        distances: Two client ids, in either order, each pair once -> distance.
        kappa: What the round counts [fraction].

    Returns:
        A new memory; pairs that did not meet stay as they were.

    Raises:
        NonFiniteUpdateError: A distance is NaN or infinite.
        ConfigError: A distance is negative, of a client from itself, or a pair is named twice.
    """
    meetings, met = dict(previous.meetings), set[Pair]()
    for (u, v), distance in sorted(distances.items()):
        pair = pair_of(u, v)
        if not math.isfinite(distance):
            raise NonFiniteUpdateError(f"distance of {u} and {v}", "is NaN or infinite", got=distance)
        if distance < 0 or u == v or pair in met:
            raise ConfigError(f"distance of {u} and {v}", "is none", got=distance,
                              expected="0 or more, two clients, each pair once")  # fmt: skip
        met.add(pair)
        before = meetings.get(pair, Meeting(distance, 0))
        meetings[pair] = Meeting((1 - kappa) * before.distance + kappa * distance, before.count + 1)
    return DistanceMemory(meetings)


def pair_of(u: str, v: str) -> Pair:
    """Return two client ids as the memory has them."""
    return (u, v) if u <= v else (v, u)
