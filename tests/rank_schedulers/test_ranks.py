"""Ranks: dealt to clients, spread over modules, and looked up in the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError, UnknownNameError
from tasks.rank_schedulers import RANK_SCHEDULERS, initial_ranks, module_ranks, rank_scheduler
from tests.rank_schedulers.cases import signals_of

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


def test_unknown_scheduler_is_named():
    with pytest.raises(UnknownNameError, match="rank scheduler 'fixd'"):
        rank_scheduler("fixd")


@pytest.mark.parametrize("name", RANK_SCHEDULERS)
def test_every_row_is_found_under_its_name_and_refuses_options_it_does_not_have(name):
    row = rank_scheduler(name)
    assert (row.name, bool(row.title)) == (name, True)
    assert row.paper.startswith("https://") or not row.paper
    with pytest.raises(ConfigError, match="colour"):
        row.bounds(signals_of({"c0": 4}), {"colour": 1.0})


def test_an_option_name_means_one_thing():
    options = [option for row in RANK_SCHEDULERS.values() for option in row.options]
    assert len({option.name for option in options}) == len(set(options))


@pytest.mark.parametrize(
    ("name", "option"), [(n, option) for n, row in RANK_SCHEDULERS.items() for option in row.options]
)
def test_defaults_are_within_their_bounds_and_values_outside_are_refused(name, option):
    row, signals = rank_scheduler(name), signals_of({"c0": 4})
    row.bounds(signals, {option.name: option.default})
    outside = "no such choice" if option.kind == "choice" else option.most + 1
    with pytest.raises(ConfigError, match=option.name):
        row.bounds(signals, {option.name: outside})
