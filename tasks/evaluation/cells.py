"""Figures of a comparison: what one cell came to, and what the cells of a method say together over their seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.evaluation.metrics import HIGHER_IS_BETTER
from tasks.evaluation.plots import Curve
from tasks.rounds.records import TRAINED, Digest, Record, RoundRecord
from tasks.rounds.summary import RunSummary


class RoundPoint(Record, frozen=True, kw_only=True):
    """A run as it stood after a round.

    Args:
        round_index: The round.
        quality: The metric of its global adapter; None where that is no finite number.
        uplink_bytes: From clients up to then [bytes].
        downlink_bytes: To clients up to then [bytes].
    """

    round_index: int
    quality: float | None
    uplink_bytes: int
    downlink_bytes: int


class CellResult(Record, frozen=True, kw_only=True):
    """What a cell came to.

    Args:
        setting: Name of its setting.
        method: Name of its method.
        seed: Its seed.
        config_sha256: Digest of the config it ran under.
        metric: The figure it is judged by.
        outcome: "failed" when it ended in an error.
        reason: The error, in one sentence.
        points: Rounds that made a new global adapter, in order; none for a failed cell.
        summary: The run's own summary; None for a failed cell.
    """

    setting: str
    method: str
    seed: int
    config_sha256: Digest
    metric: str
    outcome: Literal["finished", "failed"]
    reason: str = ""
    points: tuple[RoundPoint, ...] = ()
    summary: RunSummary | None = None


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Args:
        mean: Arithmetic mean.
        sd: Sample standard deviation (n - 1); None for a single value, which has no spread.
        count: Values it rests on.
    """

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class Standing:
    """A method in a setting, over seeds; a figure that no seed has is None.

    Args:
        quality: The metric after the last round.
        best: The metric after its best round. Chosen on the test set, so it flatters.
        best_round: Which round that was.
        rounds_to_target: First round that reached the target, over the seeds that did.
        uplink_bytes: From clients, whole run [bytes].
        downlink_bytes: To clients, whole run [bytes].
        finished: Seeds that ran to their end.
        failed: Seeds that ended in an error, with the error.
    """

    quality: Spread | None
    best: Spread | None
    best_round: Spread | None
    rounds_to_target: Spread | None
    uplink_bytes: Spread | None
    downlink_bytes: Spread | None
    finished: tuple[int, ...]
    failed: dict[int, str]


def round_points(records: Sequence[RoundRecord], metric: str) -> tuple[RoundPoint, ...]:
    """Return how a run stood after each round that made a new global adapter.

    Args:
        records: All records of the run, round 0 first.
        metric: The figure it is judged by.
    """
    return tuple(
        RoundPoint(
            round_index=record.round_index,
            quality=record.metrics.get(metric),
            uplink_bytes=record.totals["uplink_bytes"],
            downlink_bytes=record.totals["downlink_bytes"],
        )
        for record in records
        if record.outcome in TRAINED
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean and sample standard deviation of the values there are.

    Args:
        values: One per seed; None for a seed without one.

    Returns:
        None if no seed has a value.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def rounds_to_target(points: Sequence[RoundPoint], metric: str, target: float) -> int | None:
    """Return the first round whose quality is at least as good as the target.

    Args:
        points: Rounds in order.
        metric: Decides whether more or less is better.
        target: Value to reach; 0 for none.

    Returns:
        The round's index; None if there is no target or no round reached it.
    """
    if not target:
        return None
    sign = _sign(metric)
    reached = (p.round_index for p in points if p.quality is not None and sign * p.quality >= sign * target)
    return next(reached, None)


def standing(results: Sequence[CellResult], *, target: float) -> Standing:
    """Sum up one method in one setting over its seeds.

    Args:
        results: One per seed that was run; all judged by the same metric.
        target: Value for rounds to target; 0 for none.

    Invariants:
        The order of the results is irrelevant.
    """
    finished = sorted((r for r in results if r.outcome == "finished"), key=lambda r: r.seed)
    done = [result for result in finished if result.points]  # a run whose every round failed has no figures
    best = [_best(result) for result in done]
    return Standing(
        quality=spread(r.points[-1].quality for r in done),
        best=spread(point.quality for point in best if point),
        best_round=spread(point.round_index for point in best if point),
        rounds_to_target=spread(rounds_to_target(r.points, r.metric, target) for r in done),
        uplink_bytes=spread(r.points[-1].uplink_bytes for r in done),
        downlink_bytes=spread(r.points[-1].downlink_bytes for r in done),
        finished=tuple(r.seed for r in finished),
        failed={r.seed: r.reason for r in sorted(results, key=lambda r: r.seed) if r.outcome == "failed"},
    )


def mean_curve(results: Sequence[CellResult]) -> Curve:
    """Return quality by bytes moved, both averaged over seeds round by round.

    Args:
        results: One per seed.

    Returns:
        A point for every round in which all finished seeds have a figure, so that no seed comes or goes midway.
    """
    judged = [[p for p in r.points if p.quality is not None] for r in results if r.outcome == "finished"]
    runs = [{point.round_index: point for point in points} for points in judged if points]
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    rows = [[run[index] for run in runs] for index in shared]
    return Curve(
        moved_bytes=tuple(round(statistics.fmean(p.uplink_bytes + p.downlink_bytes for p in row)) for row in rows),
        values=tuple(statistics.fmean(p.quality for p in row if p.quality is not None) for row in rows),
    )


def leaders(standings: dict[str, Standing], metric: str, *, num_seeds: int) -> set[str]:
    """Return the methods with the best mean quality; more than one where they are equal to four digits.

    Args:
        standings: Method -> its standing in one setting.
        metric: Decides whether more or less is better.
        num_seeds: Seeds a method must have finished; one that lost its worst seeds must not win by that.
    """
    means = {m: round(s.quality.mean, 4) for m, s in standings.items() if s.quality and s.quality.count == num_seeds}
    best = max((_sign(metric) * mean for mean in means.values()), default=0.0)
    return {method for method, mean in means.items() if _sign(metric) * mean == best}


def _best(result: CellResult) -> RoundPoint | None:
    known = [point for point in result.points if point.quality is not None]
    sign = _sign(result.metric)
    return max(known, key=lambda p: sign * (p.quality or 0.0), default=None)


def _sign(metric: str) -> int:
    return 1 if HIGHER_IS_BETTER[metric] else -1
