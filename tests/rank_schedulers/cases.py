"""What schedulers are told in the tests: signals built by hand, and drawn ones that may hold anything a run may."""

import math
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tasks.options import Option, Value
from tasks.rank_schedulers import RankCosts, RankScheduler, RankSignals, decide, module_ranks
from tasks.rounds.capabilities import Capability, Limit

CLIENTS = ("c0", "c1", "c2", "c3", "c4", "c5")
AMOUNTS = st.one_of(st.just(0.0), st.floats(1.0, 1e12), st.sampled_from((1e-300, 1e30)))
LEVELS = st.one_of(st.just(0.0), st.floats(0.0, 100.0), st.sampled_from((1e-200, 1e200)))


def linear_costs(per_slot: int, **fields: Any) -> RankCosts:
    """Return costs under which every slot holds equally many numbers."""
    return RankCosts(**{"values": lambda rank: per_slot * rank, "base_values": 1000, **fields})


def signals_of(ceilings: Mapping[str, int], **fields: Any) -> RankSignals:
    """Return signals for clients that all trained at their ceilings, after round 1 of 10."""
    known: dict[str, Any] = {
        "round_index": 1,
        "rounds_done": 1,
        "num_rounds": 10,
        "ranks": dict(ceilings),
        "ceilings": dict(ceilings),
        "max_rank": max(ceilings.values()),
        "cohort_size": len(ceilings),
        "costs": linear_costs(100),
    }
    return RankSignals(**{**known, **fields})


def ranks_under(row: RankScheduler, signals: RankSignals, values: Mapping[str, Value]) -> dict[str, int]:
    """Return the ranks that one scheduler alone leads to."""
    return dict(decide(signals, [(row.name, row.bounds(signals, values))]).ranks)


def option_values(row: RankScheduler) -> SearchStrategy[dict[str, Value]]:
    """Draw what people may set, each option either left out or anything within its bounds."""
    return st.fixed_dictionaries({}, optional={option.name: _values_of(option) for option in row.options})


def _values_of(option: Option) -> SearchStrategy[Value]:
    most = min(option.most, 40.0)
    return {
        "number": st.floats(option.least, most),
        "count": st.integers(math.ceil(option.least), math.floor(most)),
        "switch": st.sampled_from((0, 1)),
        "choice": st.sampled_from(option.choices or ("",)),
    }[option.kind]


@st.composite
def stepped_costs(draw: DrawFn, max_rank: int) -> RankCosts:
    """Draw costs as a real model has them: modules of several ceilings, so that the numbers rise in uneven steps."""
    widths = {f"m{i}": draw(st.integers(1, 300)) for i in range(draw(st.integers(1, 3)))}
    ceilings = {path: draw(st.integers(1, max_rank)) for path in widths}
    dense = draw(st.integers(0, 500))

    def values(rank: int) -> int:
        ranks = module_ranks(rank, max_rank, ceilings)
        return dense + sum(width * ranks[path] for path, width in widths.items())

    return RankCosts(
        values,
        base_values=draw(st.sampled_from((1, 10_000, 7_000_000_000))),
        uplink_bytes=float(draw(st.sampled_from((1, 2, 4)))),
        downlink_bytes=float(draw(st.sampled_from((1, 2, 4)))),
        overhead_bytes=float(draw(st.integers(0, 3000))),
        deadline_s=draw(st.sampled_from((0.5, 60.0, 3600.0))),
    )


@st.composite
def capabilities(draw: DrawFn) -> Capability:
    """Draw a machine, any of its figures unmeasured, tiny or enormous."""
    return Capability(**{name: draw(AMOUNTS) for name in Capability.__struct_fields__})


@st.composite
def rank_signals(draw: DrawFn, *, has_equal_ceilings: bool = False, has_memory_limits: bool = True) -> RankSignals:
    """Draw anything that a run may tell its schedulers."""
    clients = draw(st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=len(CLIENTS), unique=True))
    max_rank = draw(st.sampled_from((1, 2, 7, 32)))
    ranks = st.integers(1, max_rank)
    common = draw(ranks)
    ceilings = {client: common if has_equal_ceilings else draw(ranks) for client in clients}
    num_rounds = draw(st.integers(1, 20))
    some = st.lists(st.sampled_from(clients), unique=True)
    limits = st.builds(
        Limit,
        memory_rank=st.integers(0, 40 if has_memory_limits else 0),
        pruned_rank=st.integers(0, 40),
    )
    return RankSignals(
        round_index=draw(st.integers(0, 30)),
        rounds_done=draw(st.integers(0, num_rounds)),
        num_rounds=num_rounds,
        ranks={client: draw(st.integers(1, ceiling)) for client, ceiling in ceilings.items()},
        ceilings=ceilings,
        max_rank=max_rank,
        cohort_size=draw(st.integers(1, len(clients))),
        costs=draw(stepped_costs(max_rank)),
        capabilities={client: draw(capabilities()) for client in draw(some)},
        limits={client: draw(limits) for client in draw(some)},
        spectra=draw(st.dictionaries(st.sampled_from(("m0", "m1", "m2")), _spectra())),
        spent_bytes=draw(st.sampled_from((0, 1000, 10**15))),
    )


def _spectra() -> SearchStrategy[list[float]]:
    return st.lists(LEVELS, max_size=8).map(lambda values: sorted(values, reverse=True))
