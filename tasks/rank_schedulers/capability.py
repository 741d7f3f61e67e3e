"""Ranks that a client's machine, link and data can bear, from what it measured while it trained."""

import math
from collections.abc import Callable, Mapping

from tasks.options import Option
from tasks.rank_schedulers.costs import counted_once, largest_fitting
from tasks.rank_schedulers.decision import Bound, RankCosts, RankSignals
from tasks.rounds.capabilities import Capability
from tasks.rounds.ledger import MEGABYTE

STATE_BYTES = 16
"""Memory of one trained number: float32 value, gradient and Adam's two moments [bytes]."""

CAPABILITY_OPTIONS = (
    Option(
        name="deadline_share",
        description="share of the deadline that download, training and upload may take together [fraction]",
        default=0.5,
        least=0.01,
    ),
    Option(
        name="memory_share",
        description="share of the free memory that training may take, activations included [fraction]",
        default=0.8,
        least=0.01,
    ),
    Option(
        name="unknown_rank",
        description="rank of a client that nothing is known of yet, so that its first round measures it [slots]",
        default=1,
        least=1.0,
        most=4096.0,
        kind="count",
    ),
    Option(
        name="rank_per_sqrt_example",
        description="slots for the square root of a client's examples, 0 lets data bound nothing [slots]",
        default=0.0,
        most=4096.0,
    ),
)


def capability(
    signals: RankSignals,
    *,
    deadline_share: float,
    memory_share: float,
    unknown_rank: int,
    rank_per_sqrt_example: float,
) -> Mapping[str, Bound]:
    r"""Bound each client by the scarcest of its memory, its time and its data.

    Memory: $16 P(r) \le$ the share of the free memory less activations. Time: $P(r) b_{down} / v_{down} + W (1 + 6 P(r)
    / 4N) / F + P(r) b_{up} / v_{up} \le$ the share of the deadline, half of the round's overhead added to the bytes of
    each direction. Data: $c \sqrt n$. P are the adapter's numbers at a rank, N the base model's; W is the arithmetic of
    a round on the frozen base alone, 4N for every item, to which each trained number adds 6.

    Args:
        signals: What is known; capabilities, ceilings and costs count.
        deadline_share: Share of the deadline that the client may take [fraction].
        memory_share: Share of its free memory that training may take [fraction].
        unknown_rank: Rank of clients that never reported [slots].
        rank_per_sqrt_example: c above; 0 lets data bound nothing [slots].

    Returns:
        A bound wherever something is short, its reason naming what is shortest; what was not measured bounds nothing.
        Where not even rank 1 fits, the bound is 1 and the reason says so.

    Invariants:
        Equal clients get equal ranks. More memory, bandwidth, arithmetic or data never lowers a rank.

    References:
        Ours: the cost model is derived, not taken from a paper. Rank is nearly free beside the base model (16 slots on
        the attention of a model of 7e9 numbers add 0.2 % arithmetic), so a machine that is slow altogether is better
        served by shorter sequences or fewer layers than by a rank of 1.
    """
    costs = counted_once(signals.costs)
    bounds: dict[str, Bound] = {}
    for client, ceiling in sorted(signals.ceilings.items()):
        known = signals.capabilities.get(client)
        if known is None:
            bounds[client] = Bound(unknown_rank, "nothing measured yet, the first round does")
            continue
        found = (
            _by_memory(known, costs, ceiling, memory_share),
            _by_deadline(known, costs, ceiling, deadline_share),
            _by_examples(known, rank_per_sqrt_example),
        )
        scarce = [bound for bound in found if bound is not None]
        if scarce:
            bounds[client] = min(scarce, key=lambda bound: bound.rank)
    return bounds


def _by_memory(known: Capability, costs: RankCosts, ceiling: int, share: float) -> Bound | None:
    if not known.memory_bytes:
        return None
    room = share * known.memory_bytes - known.activation_bytes
    rank = largest_fitting(ceiling, lambda rank: STATE_BYTES * costs.values(rank) <= room)
    return _bound(rank, ceiling, lambda: f"{_mega(known.memory_bytes)}B of memory, {_mega(room)}B for the adapter")


def _by_deadline(known: Capability, costs: RankCosts, ceiling: int, share: float) -> Bound | None:
    allowed = share * costs.deadline_s
    rank = largest_fitting(ceiling, lambda rank: math.fsum(_seconds(known, costs, rank).values()) <= allowed)

    def reason() -> str:
        too_long = _seconds(known, costs, rank + 1)
        slowest = max(too_long, key=lambda part: too_long[part])
        return f"{allowed:g} s of a deadline of {costs.deadline_s:g} s, most of them for {slowest}"

    return _bound(rank, ceiling, reason)


def _by_examples(known: Capability, rank_per_sqrt_example: float) -> Bound | None:
    if not known.num_examples or not rank_per_sqrt_example:
        return None
    rank = math.floor(rank_per_sqrt_example * math.sqrt(known.num_examples))
    return Bound(max(1, rank), f"{known.num_examples:g} examples bear no more")


def _seconds(known: Capability, costs: RankCosts, rank: int) -> dict[str, float]:
    values, overhead = costs.values(rank), costs.overhead_bytes / 2
    work = known.work_flops * (1 + 6 * values / (4 * costs.base_values))
    down, speed, up = known.downlink_bytes_per_s, known.flops_per_s, known.uplink_bytes_per_s
    return {
        f"the download at {_mega(down)}B/s": _time(values * costs.downlink_bytes + overhead, down),
        f"training at {_mega(speed)}FLOP/s": _time(work, speed),
        f"the upload at {_mega(up)}B/s": _time(values * costs.uplink_bytes + overhead, up),
    }


def _time(amount: float, per_second: float) -> float:
    return amount / per_second if per_second else 0.0


def _bound(rank: int, ceiling: int, reason: Callable[[], str]) -> Bound | None:
    if rank == ceiling:
        return None
    return Bound(rank, reason()) if rank else Bound(1, f"not even rank 1 fits: {reason()}")


def _mega(amount: float) -> str:
    return f"{amount / MEGABYTE:g} M"
