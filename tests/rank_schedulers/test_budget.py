"""Budgets: the largest cap that is paid for, what is left over, and what happens when even rank 1 is too dear."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rank_schedulers import rank_scheduler
from tests.rank_schedulers.cases import linear_costs, rank_signals, ranks_under, signals_of

ROW = rank_scheduler("budget")
TRIED = settings(max_examples=60, derandomize=True)


@st.composite
def squeezed(draw):
    """Draw signals and a budget around what rank 1 to all ceilings cost in every round left."""
    signals = draw(rank_signals(has_memory_limits=False))
    signals = replace(signals, limits={}, spent_bytes=min(signals.spent_bytes, 1000))
    least, most = (bill(signals, _capped(signals.ceilings, cap)) for cap in (1, signals.max_rank))
    part = Fraction(draw(st.integers(-10, 110)), 100)
    left = (least + part * (most - least)) * max(1, signals.num_rounds - signals.rounds_done)
    # The .37 of a byte keeps what is left off any sum of whole bytes, where rounding would decide.
    return signals, max(0.37e-6, (int(left) + signals.spent_bytes + 0.37) / 1e6)


def bill(signals, ranks):
    """Return what a round is expected to move, exactly."""
    costs, drawn = signals.costs, Fraction(min(signals.cohort_size, len(ranks)), len(ranks))
    both = int(costs.uplink_bytes + costs.downlink_bytes)
    return drawn * sum(costs.values(rank) * both + int(costs.overhead_bytes) for rank in ranks.values())


def share_of(signals, megabytes):
    left = Fraction(megabytes) * 10**6 - signals.spent_bytes
    return left / max(1, signals.num_rounds - signals.rounds_done)


def ranks_by_trying(signals, megabytes):
    """Raise the cap slot by slot, then client by client, for as long as the bill stays within its share."""
    share, ceilings, cap = share_of(signals, megabytes), dict(sorted(signals.ceilings.items())), 1
    if bill(signals, dict.fromkeys(ceilings, 1)) > share:
        return dict.fromkeys(ceilings, 1)
    while cap < max(ceilings.values()) and bill(signals, _capped(ceilings, cap + 1)) <= share:
        cap += 1
    ranks = _capped(ceilings, cap)
    for client, ceiling in ceilings.items():
        one_more = ranks | {client: min(ceiling, cap + 1)}
        ranks = one_more if bill(signals, one_more) <= share else ranks
    return ranks


def _capped(ceilings, cap):
    return {client: min(ceiling, cap) for client, ceiling in ceilings.items()}


def test_worked_budget_is_shared_over_rounds_and_the_clients_a_round_draws():
    # Half of four clients, so 2 * (800 r + 100) bytes; 9 rounds are left of 10, of a budget of 0.1 MB less 10,000 B.
    costs = linear_costs(100, overhead_bytes=100.0)
    signals = signals_of(dict.fromkeys(("c0", "c1", "c2", "c3"), 8), cohort_size=2, costs=costs, spent_bytes=10_000)
    # Rank 6 for all costs 9,800 B; a slot more for one client adds 400 B and no longer fits.
    assert set(ranks_under(ROW, signals, {"budget_megabytes": 0.1}).values()) == {6}
    # 1,000 B more a round bear two clients of rank 7: 10,600 B.
    ranks = ranks_under(ROW, signals, {"budget_megabytes": 0.109})
    assert ranks == {"c0": 7, "c1": 7, "c2": 7, "c3": 6}


def test_reason_says_what_is_left_for_how_long():
    signals = signals_of({"c0": 8}, spent_bytes=50_000)
    assert ROW.bounds(signals, {"budget_megabytes": 0.06})["c0"].reason == "0.01 of 0.06 MB left, rounds left: 9"


def test_a_budget_too_small_for_rank_one_leaves_everyone_there_and_says_what_is_missing():
    bounds = ROW.bounds(signals_of({"c0": 8, "c1": 2}, spent_bytes=70_000), {"budget_megabytes": 0.061})
    assert [bound.rank for bound in bounds.values()] == [1, 1]
    # Rank 1 costs two clients 1,600 B, the overspent 9,000 B are 1,000 B for each of nine rounds.
    assert bounds["c0"].reason == "0.0026 MB a round short of rank 1 for all: -0.009 of 0.061 MB left, rounds left: 9"


def test_no_budget_and_an_ample_one_bound_nothing():
    signals = signals_of({"c0": 8, "c1": 3})
    assert ROW.bounds(signals) == {}
    assert ROW.bounds(signals, {"budget_megabytes": 1000.0}) == {}


def test_what_is_left_over_passes_by_clients_that_are_at_their_ceilings():
    signals = signals_of({"c0": 2, "c1": 8, "c2": 8, "c3": 8})
    # Rank 2 for all costs 6,400 B a round, two slots more 8,000 B.
    ranks = ranks_under(ROW, signals, {"budget_megabytes": 9 * 8000 / 1e6})
    assert ranks == {"c0": 2, "c1": 3, "c2": 3, "c3": 2}


def test_low_ceilings_leave_more_to_the_others():
    alike = signals_of({"c0": 8, "c1": 8})
    mixed = signals_of({"c0": 8, "c1": 2})
    values = {"budget_megabytes": 9 * 8 * 800 / 1e6}
    assert ranks_under(ROW, alike, values) == {"c0": 4, "c1": 4}
    assert ranks_under(ROW, mixed, values) == {"c0": 6, "c1": 2}


@TRIED
@given(squeezed())
def test_ranks_are_those_that_trying_slot_by_slot_finds(drawn):
    signals, megabytes = drawn
    assert ranks_under(ROW, signals, {"budget_megabytes": megabytes}) == ranks_by_trying(signals, megabytes)


@TRIED
@given(squeezed())
def test_expected_bytes_stay_within_the_rounds_share_unless_all_ranks_are_one(drawn):
    signals, megabytes = drawn
    ranks = ranks_under(ROW, signals, {"budget_megabytes": megabytes})
    assert set(ranks.values()) == {1} or bill(signals, ranks) <= share_of(signals, megabytes)


@TRIED
@given(squeezed(), st.floats(1.0, 2.0))
def test_more_budget_never_lowers_a_rank(drawn, factor):
    signals, megabytes = drawn
    less, more = (ranks_under(ROW, signals, {"budget_megabytes": b}) for b in (megabytes, factor * megabytes))
    assert all(more[client] >= rank for client, rank in less.items())
