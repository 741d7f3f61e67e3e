"""Received clients stand in for similar ones that are missing: as weights, no tensor is copied.

Here: who counts for whom. Not here: how far apart clients are (`distance_memory`), and averaging, which any aggregator
that heeds weights does.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.aggregators.distance_memory import DistanceMemory, Pair, pair_of
from tasks.errors import ConfigError, EmptyCohortError, InvalidWeightError
from tasks.options import Option

SURROGATE_OPTIONS = (
    Option("kappa", "how fast a new distance replaces the remembered one [fraction]", default=0.2, least=0.01),
    Option("min_seen", "rounds in which two clients must have met [rounds]", 3, least=1.0, most=1e6, kind="count"),
    Option("epsilon", "largest distance of a surrogate [median distances]", default=0.5, most=100.0),
    Option("gamma", "what a missing client keeps of its weight for every round it is away [fraction]", default=0.9),
    Option("max_share", "share of the mean that standing in may lift a client to [fraction]", default=0.5),
)


@dataclass(frozen=True)
class _Row:
    """What configs may set of surrogates."""

    name: str
    options: tuple[Option, ...]


SURROGATES = _Row("surrogates", SURROGATE_OPTIONS)


@dataclass(frozen=True)
class SurrogateRule:
    """Who may stand in for whom, and for how much.

    Args:
        kappa: What a new distance counts against the remembered one [fraction].
        min_seen: Rounds in which two clients must have met before their distance counts.
        epsilon: Largest distance of a surrogate, in medians of all distances that count.
        gamma: What a missing client keeps of its weight for every round it is away [fraction].
        max_share: Share of the mean that standing in may lift a client to [fraction].
    """

    kappa: float = 0.2
    min_seen: int = 3
    epsilon: float = 0.5
    gamma: float = 0.9
    max_share: float = 0.5


@dataclass(frozen=True)
class Surrogates:
    """A round's weights with surrogates in them.

    Args:
        weights: Received client -> weight; they sum to what the received ones summed to before.
        notes: Missing client -> its surrogate; empty where it has none.
        covered: Share of the missing clients that have a surrogate; 1 where nobody is missing [fraction].
    """

    weights: Mapping[str, float]
    notes: Mapping[str, str]
    covered: float


def surrogate_weights(
    received: Mapping[str, float],
    missing: Mapping[str, float],
    memory: DistanceMemory,
    *,
    ages: Mapping[str, int],
    rule: SurrogateRule | None = None,
) -> Surrogates:
    r"""Give the weight of every missing client to the received one that is most like it, if any is like it enough.

    $v(u) = \arg\min_v S_{uv}$ over the received clients, used if $S_{uv} \le \epsilon \cdot \mathrm{median}(S)$;
    $p'_v = p_v + \sum_{u : v(u) = v} p_u \gamma^{age_u}$, then scaled back to the sum of the received weights.

    Args:
        received: Client -> weight, above 0; the clients whose updates arrived.
        missing: Client -> weight, above 0; the invited ones whose updates did not.
        memory: Distances of earlier rounds.
        ages: Missing client -> rounds since its last update arrived, 1 or more; who is not named was never heard of.
        rule: Who may stand in for whom; None for the defaults.

    Returns:
        Weights of the received clients, and who stands in for whom. Equal distances go to the lowest id.

    Raises:
        EmptyCohortError: Nobody was received: the round has failed, and the model stays.
        InvalidWeightError: A weight is not positive and finite.
        ConfigError: A client is both received and missing, or an age is below 1.

    Invariants:
        Nobody missing, or nobody covered → the received weights to the bit: the mean over arrivals. Standing in lifts
        nobody above `max_share` of the mean; who has more by its own weight gains none. Order of clients irrelevant.

    References:
        "SAFARI: Sparsity-Enabled Federated Learning with Limited and Unreliable Communications", IEEE TMC 2023,
        https://arxiv.org/abs/2204.02321. Read: the abstract, and a third party's reproduction, whose choice of the
        surrogate has a fault (it always takes the first client) and was not followed. Surrogates by similarity are the
        paper's; we differ: distances of updates as products, smoothed over rounds (there, as far as we can tell,
        distances of last models), the bound epsilon, the fading gamma, the cap, and weights in place of copied tensors,
        which come to the same. Who is in no group of similar clients is left out rather than replaced by a stranger.
    """
    rule = rule or SurrogateRule()
    _check(received, missing, ages)
    known = {pair: m.distance for pair, m in memory.meetings.items() if m.count >= rule.min_seen}
    limit = rule.epsilon * statistics.median(known.values()) if known else 0.0
    notes = {u: _nearest(u, received, known, limit) if u in ages else "" for u in sorted(missing)}
    gains = {v: math.fsum(missing[u] * rule.gamma ** ages[u] for u in notes if notes[u] == v) for v in sorted(received)}
    covered = sum(map(bool, notes.values())) / len(notes) if notes else 1.0
    weights = _capped(received, gains, rule.max_share) if any(gains.values()) else dict(received)
    return Surrogates(weights, notes, covered)


def _check(received: Mapping[str, float], missing: Mapping[str, float], ages: Mapping[str, int]) -> None:
    if not received:
        raise EmptyCohortError("surrogates", "nobody was received who could stand in", remedy="keep the model as it is")
    for client, weight in sorted((*received.items(), *missing.items())):
        if not (math.isfinite(weight) and weight > 0):
            raise InvalidWeightError(f"client {client}", "has no usable weight", got=weight, expected="above 0")
    both = sorted(received.keys() & missing.keys())
    young = sorted(client for client in missing if ages.get(client, 1) < 1)
    if both or young:
        raise ConfigError(
            "surrogates", "clients are not what they are said to be",
            got=f"both received and missing: {both}, away for less than a round: {young}", expected="none",
        )  # fmt: skip


def _nearest(u: str, received: Iterable[str], known: Mapping[Pair, float], limit: float) -> str:
    found = sorted((distance, v) for v in received if (distance := known.get(pair_of(u, v))) is not None)
    return found[0][1] if found and found[0][0] <= limit else ""


def _capped(received: Mapping[str, float], gains: Mapping[str, float], max_share: float) -> dict[str, float]:
    """Scale weights and gains to the received sum; what is above its bound is shared out among the others."""
    total = math.fsum(received.values())
    bounds = {v: max(max_share * total, weight) for v, weight in received.items()}
    weights = {v: received[v] + gains[v] for v in sorted(received)}
    capped: dict[str, float] = {}
    scale = 1.0
    while weights:
        scale = (total - math.fsum(capped.values())) / math.fsum(weights.values())
        above = [v for v, weight in weights.items() if weight * scale > bounds[v]]
        if not above:
            break
        for v in above:
            capped[v] = bounds[v]
            del weights[v]
    return dict(sorted({**capped, **{v: weight * scale for v, weight in weights.items()}}.items()))
