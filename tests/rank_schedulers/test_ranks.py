"""Ranks: dealt, spread over modules, and scheduled by the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import UnknownNameError
from tasks.rank_schedulers import RANK_SCHEDULERS, RankSignals, initial_ranks, module_ranks, rank_scheduler

CLIENTS = [f"c{i:02d}" for i in range(10)]


def test_staircase_fractions_deal_rising_ranks():
    ranks = initial_ranks(CLIENTS, 32, [i / 10 for i in range(1, 11)])
    assert list(ranks.values()) == [3, 6, 10, 13, 16, 19, 22, 26, 29, 32]


def test_fractions_repeat_and_never_reach_zero():
    assert initial_ranks(CLIENTS[:3], 8, [0.001, 1.0]) == {"c00": 1, "c01": 8, "c02": 1}


@given(st.integers(1, 64), st.dictionaries(st.sampled_from("abc"), st.integers(1, 64), min_size=1), st.data())
def test_module_ranks_stay_between_one_and_their_ceiling_and_rise_with_rank(max_rank, ceilings, data):
    rank = data.draw(st.integers(1, max_rank))
    ranks = module_ranks(rank, max_rank, ceilings)
    assert all(1 <= ranks[m] <= ceilings[m] for m in ceilings)
    assert module_ranks(max_rank, max_rank, ceilings) == ceilings
    if rank < max_rank:
        higher = module_ranks(rank + 1, max_rank, ceilings)
        assert all(ranks[m] <= higher[m] for m in ceilings)


@pytest.mark.parametrize("name", RANK_SCHEDULERS)
def test_every_scheduler_ranks_every_client_within_bounds_and_explains_changes(name):
    before = initial_ranks(CLIENTS, 16, [0.5, 1.0])
    decision = rank_scheduler(name)(RankSignals(round_index=1, num_rounds=5, ranks=before, max_rank=16))
    assert set(decision.ranks) == set(CLIENTS)
    assert all(1 <= rank <= 16 for rank in decision.ranks.values())
    changed = {client for client in CLIENTS if decision.ranks[client] != before[client]}
    assert changed == set(decision.reasons)


def test_unknown_scheduler_is_named():
    with pytest.raises(UnknownNameError, match="rank scheduler 'fixd'"):
        rank_scheduler("fixd")
