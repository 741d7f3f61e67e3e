"""Simulated annealing of ranks: all clients start hot, at a high rank, and cool to a floor along a curve."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from tasks.options import Option
from tasks.rank_schedulers.decision import Bound, RankSignals
from tasks.rounds.ledger import FLOAT32_BYTES, MEGABYTE

Curve = Callable[[Fraction], Fraction | float]
"""Progress from 0 to 1 -> share of the way down that is still ahead, from 1 to 0 and never rising."""

CURVES: dict[str, Curve] = {
    "cubic": lambda u: (1 - u) ** 3,
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
}

ANNEALING_OPTIONS = (
    Option(
        name="curve",
        description="how the rank falls: cubic soon, linear evenly, cosine late; linear and cosine cost the same bytes",
        default="cubic",
        kind="choice",
        choices=tuple(CURVES),
    ),
    Option(
        name="initiating_rounds",
        description="rounds at the heating rank before the curve starts [rounds]",
        default=0,
        most=1e6,
        kind="count",
    ),
    Option(
        name="initiating",
        description="what trains before the curve starts: lora, or full for the whole model, which low ranks then "
        "start from",
        default="lora",
        kind="choice",
        choices=("lora", "full"),
    ),
    Option(
        name="initiating_rank",
        description="rank in the initiating rounds, e.g. the largest for the span of whole matrices; 0 for the heating "
        "rank, below which it never is [slots]",
        default=0,
        most=65_536.0,
        kind="count",
    ),
    Option(
        name="initiating_megabytes",
        description="largest update of the initiating stage; where one would be larger the heating rank is taken [MB]",
        default=100.0,
        most=1e6,
    ),
    Option(
        name="cooling_rounds",
        description="rounds at the floor after the curve has ended [rounds]",
        default=1,
        most=1e6,
        kind="count",
    ),
    Option(
        name="heating_rank",
        description="rank that the curve starts from, 0 for the largest of the run [slots]",
        default=0,
        most=4096.0,
        kind="count",
    ),
    Option(
        name="floor_rank",
        description="rank that the curve ends at [slots]",
        default=4,
        least=1.0,
        most=4096.0,
        kind="count",
    ),
    Option(
        name="snap",
        description="1 keeps to the heating rank halved again and again, so that ranks change rarely",
        default=0,
        kind="switch",
    ),
)


@dataclass(frozen=True)
class Annealing:
    """One way down from a high rank to a low one.

    Args:
        curve: A name in `CURVES`.
        heating_rank: Where it starts [slots].
        floor_rank: Where it ends; one above the heating rank counts as the heating rank [slots].
        initiating_rounds: Rounds trained before the curve starts [rounds].
        cooling_rounds: Rounds at the floor after the curve [rounds].
        snap: Whether only the heating rank's halves, rounded down, and the floor are taken.
    """

    curve: str
    heating_rank: int
    floor_rank: int
    initiating_rounds: int = 0
    cooling_rounds: int = 0
    snap: bool = False


def annealed_rank(annealing: Annealing, rounds_done: int, num_rounds: int) -> int:
    r"""Return the rank of the round after `rounds_done` rounds.

    $u = (t - T_0) / (T_1 - T_0)$ clipped to [0, 1], $T_1 = T - T_{cool}$, and $r = \lfloor r_T + (r_0 - r_T) c(u) +
    1/2 \rfloor$, where c is the curve. A curve has at least one step: $T_1 \ge T_0 + 1$, so that no choice of rounds
    leaves the first round below the heating rank.

    Args:
        annealing: The way down.
        rounds_done: Rounds trained so far, t.
        num_rounds: Rounds of the run, T.

    Returns:
        From the floor to the heating rank; snapped ranks are rounded up to the next one that is allowed.

    Invariants:
        Starts at the heating rank; never rises with the rounds done; at the floor once only the cooling rounds are
        left. Initiating rounds that fill the run, or equal ranks at both ends -> the heating rank throughout.
    """
    start = annealing.initiating_rounds
    end = max(num_rounds - annealing.cooling_rounds, start + 1)
    progress = min(max(Fraction(rounds_done - start, end - start), Fraction(0)), Fraction(1))
    floor = min(annealing.floor_rank, annealing.heating_rank)
    ahead = CURVES[annealing.curve](progress)
    rank = _rounded(floor + (annealing.heating_rank - floor) * ahead)
    return _snapped(rank, annealing.heating_rank, floor) if annealing.snap else rank


def _rounded(rank: Fraction | float) -> int:
    return math.floor(rank + Fraction(1, 2))


def _snapped(rank: int, heating: int, floor: int) -> int:
    smallest = heating
    while smallest // 2 >= max(rank, floor):
        smallest //= 2
    return floor if rank <= floor else smallest


def whole_rounds(
    base_values: int, *, initiating: str, initiating_rounds: int, initiating_megabytes: float, **_: object
) -> int:
    """Return how many of a run's first rounds train the whole model.

    Args:
        base_values: Numbers in the base model, four bytes each whatever the codec.
        initiating: "full" for the whole model, else "lora".
        initiating_rounds: Rounds before the curve starts [rounds].
        initiating_megabytes: Largest update that the stage may take [MB].

    Returns:
        The initiating rounds, or 0 where they train LoRA, which they also do where the model is above the cap.
    """
    fits = _whole_megabytes(base_values) <= initiating_megabytes
    return initiating_rounds if initiating == "full" and fits else 0


def _whole_megabytes(base_values: int) -> float:
    return FLOAT32_BYTES * base_values / MEGABYTE


def _initiating_whole(signals: RankSignals, most_megabytes: float, heating: int) -> Bound:
    megabytes = _whole_megabytes(signals.costs.base_values)
    if megabytes > most_megabytes:
        reason = (
            f"initiating stage: the whole model takes {megabytes:.3g} MB, above {most_megabytes:g} MB; LoRA instead"
        )
        return Bound(heating, reason)
    return Bound(heating, f"initiating stage on the whole model, {megabytes:.3g} MB an update; then rank {heating}")


def _initiating(signals: RankSignals, rank: int, most_megabytes: float, heating: int) -> Bound:
    megabytes = signals.costs.values(rank) * signals.costs.uplink_bytes / MEGABYTE
    if megabytes > most_megabytes:
        reason = f"initiating stage: an update of rank {rank} takes {megabytes:.3g} MB, above {most_megabytes:g} MB"
        return Bound(heating, reason)
    return Bound(rank, f"initiating stage at rank {rank}, {megabytes:.3g} MB an update")


def sa_annealing(  # noqa: PLR0913  one keyword for each option
    signals: RankSignals,
    *,
    curve: str,
    initiating_rounds: int,
    initiating: str,
    initiating_rank: int,
    initiating_megabytes: float,
    cooling_rounds: int,
    heating_rank: int,
    floor_rank: int,
    snap: bool,
) -> Mapping[str, Bound]:
    """Bound all clients by the rank that the curve has reached.

    Args:
        signals: What is known at the end of the round; rounds, the largest rank and what a rank costs count.
        curve: A name in `CURVES`.
        initiating_rounds: Rounds before the curve starts [rounds].
        initiating: What trains in them: "lora", or "full" for the whole model, within the same cap on bytes.
        initiating_rank: Rank in them; 0, or one below the heating rank, for the heating rank [slots].
        initiating_megabytes: Largest update of those rounds; above it LoRA trains at the heating rank [MB].
        cooling_rounds: Rounds at the floor at the end of the run [rounds].
        heating_rank: Rank at the start, never above the run's largest; 0 for that one [slots].
        floor_rank: Rank at the end [slots].
        snap: Keep to the heating rank's halves and the floor.

    Returns:
        The same bound for every client.

    Invariants:
        Those of `annealed_rank`.

    References:
        SA-FedLoRA, https://arxiv.org/abs/2405.09394v1 (the second version is another paper). Inspired by it, not
        reproduced: only the abstract could be read, which has the two stages, heating and cooling, and the three
        families of curves. Ranks, rounds and the exact formulas are ours, and so is `snap`. In the paper's first stage
        clients train the whole model, held near the global one by a penalty (from one summary by others). The penalty
        is local work and not part of this; `full` trains the whole model in that stage, and freezes what it made as
        the base of the low ranks. `initiating_rank` approaches it from below: adapters of full rank span every change
        of the matrices they adapt; they are not the same optimisation, and what has no adapter stays frozen.
    """
    heating = min(heating_rank or signals.max_rank, signals.max_rank)
    first_rank, is_first = min(initiating_rank, signals.max_rank), signals.rounds_done < initiating_rounds
    if is_first and initiating == "full":
        bound = _initiating_whole(signals, initiating_megabytes, heating)
        return dict.fromkeys(sorted(signals.ranks), bound)
    if is_first and first_rank > heating:
        bound = _initiating(signals, first_rank, initiating_megabytes, heating)
        return dict.fromkeys(sorted(signals.ranks), bound)
    annealing = Annealing(curve, heating, floor_rank, initiating_rounds, cooling_rounds, snap)
    rank = annealed_rank(annealing, signals.rounds_done, signals.num_rounds)
    progress = f"{signals.rounds_done} of {signals.num_rounds} rounds trained"
    bound = Bound(rank, f"{curve} curve from {heating} to {min(floor_rank, heating)}, {progress}")
    return dict.fromkeys(sorted(signals.ranks), bound)
