"""Several schedulers at once: the smallest bound holds, within what the config and the client's memory allow."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.rank_schedulers import Bound, decide
from tasks.rounds.capabilities import Limit
from tests.rank_schedulers.cases import rank_signals, signals_of

NAMES = ("first", "second", "third")


def bounds(**ranks):
    return {client: Bound(rank, f"{rank} at most") for client, rank in ranks.items()}


def test_the_smallest_bound_wins_and_names_its_scheduler():
    decision = decide(signals_of({"c0": 8, "c1": 8}), [("a", bounds(c0=5, c1=2)), ("b", bounds(c0=3))])
    assert decision.ranks == {"c0": 3, "c1": 2}
    assert decision.reasons == {"c0": "b: 3 at most", "c1": "a: 2 at most"}


def test_of_equal_bounds_the_first_is_named():
    assert decide(signals_of({"c0": 8}), [("a", bounds(c0=3)), ("b", bounds(c0=3))]).reasons["c0"].startswith("a:")


def test_ranks_return_to_the_ceiling_when_nothing_bounds_them_any_more():
    decision = decide(signals_of({"c0": 8}, ranks={"c0": 2}), [("a", bounds(c0=20))])
    assert decision.ranks == {"c0": 8}
    assert decision.reasons["c0"].startswith("config:")


def test_a_memory_limit_holds_without_any_scheduler():
    limits = {"c0": Limit(memory_rank=3), "c1": Limit(memory_rank=0), "c2": Limit(memory_rank=30)}
    decision = decide(signals_of({"c0": 8, "c1": 8, "c2": 8}, limits=limits), [])
    assert decision.ranks == {"c0": 3, "c1": 8, "c2": 8}
    assert list(decision.reasons) == ["c0"]
    assert decision.reasons["c0"].startswith("memory:")


def test_a_bound_below_a_memory_limit_still_holds_and_one_above_does_not():
    limits = {"c0": Limit(memory_rank=3), "c1": Limit(memory_rank=3)}
    decision = decide(signals_of({"c0": 8, "c1": 8}, limits=limits), [("a", bounds(c0=2, c1=5))])
    assert decision.ranks == {"c0": 2, "c1": 3}


def test_bounds_below_one_mean_one_and_unchanged_ranks_need_no_reason():
    decision = decide(signals_of({"c0": 1, "c1": 8}), [("a", bounds(c0=0, c1=-3))])
    assert decision.ranks == {"c0": 1, "c1": 1}
    assert list(decision.reasons) == ["c1"]


@given(
    rank_signals(),
    st.lists(st.dictionaries(st.sampled_from(("c0", "c1", "c2", "x")), st.integers(-1, 40)), max_size=3),
)
def test_ranks_are_the_smallest_of_all_bounds_whatever_the_order(signals, drawn):
    proposals = [(name, bounds(**ranks)) for name, ranks in zip(NAMES, drawn, strict=False)]
    decision = decide(signals, proposals)
    for client, ceiling in signals.ceilings.items():
        memory = signals.limits.get(client, Limit()).memory_rank
        smallest = min([ceiling, memory or ceiling, *(ranks[client] for ranks in drawn if client in ranks)])
        assert decision.ranks[client] == max(1, smallest)
    assert decide(signals, proposals[::-1]).ranks == decision.ranks
