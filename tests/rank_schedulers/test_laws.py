"""What every scheduler is held to, and what only those that promise it."""

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rank_schedulers import RANK_SCHEDULERS, decide, rank_scheduler
from tasks.rounds.capabilities import Capability, Limit
from tests.rank_schedulers.cases import linear_costs, option_values, rank_signals, ranks_under, signals_of

EVERY = pytest.mark.parametrize("name", RANK_SCHEDULERS)
TRIED = settings(max_examples=40, derandomize=True)
WITNESSES = {
    "capability": ({}, {"capabilities": {"c0": Capability()}}),
    "budget": ({"budget_megabytes": 0.0275}, {}),
    "hetlora_prune": ({}, {"limits": {"c1": Limit(pruned_rank=2)}}),
}


def backwards(mapping):
    return dict(reversed(mapping.items()))


@EVERY
@TRIED
@given(signals=rank_signals(), data=st.data())
def test_every_client_gets_a_rank_it_may_have_and_every_change_its_reason(name, signals, data):
    row = rank_scheduler(name)
    bounds = row.bounds(signals, data.draw(option_values(row)))
    decision = decide(signals, [(name, bounds)])
    assert set(bounds) <= set(signals.ranks)
    assert all(bound.rank >= 1 and bound.reason for bound in bounds.values())
    assert set(decision.ranks) == set(signals.ranks)
    assert all(1 <= decision.ranks[client] <= ceiling for client, ceiling in signals.ceilings.items())
    changed = {client for client, rank in signals.ranks.items() if decision.ranks[client] != rank}
    assert changed == set(decision.reasons)


@EVERY
@TRIED
@given(signals=rank_signals(), data=st.data())
def test_the_same_signals_give_the_same_bounds_and_are_left_as_they_are(name, signals, data):
    row = rank_scheduler(name)
    values = data.draw(option_values(row))
    before = copy.deepcopy(signals)
    first = row.bounds(signals, values)
    assert row.bounds(signals, values) == first
    assert signals == before


@EVERY
@TRIED
@given(signals=rank_signals(), data=st.data())
def test_the_order_in_which_clients_and_modules_are_listed_is_irrelevant(name, signals, data):
    row = rank_scheduler(name)
    values = data.draw(option_values(row))
    mappings = ("ranks", "ceilings", "capabilities", "limits", "spectra")
    turned = replace(signals, **{field: backwards(getattr(signals, field)) for field in mappings})
    assert row.bounds(turned, values) == row.bounds(signals, values)


@pytest.mark.parametrize("name", [name for name, row in RANK_SCHEDULERS.items() if row.equal_ranks])
@TRIED
@given(signals=rank_signals(has_equal_ceilings=True, has_memory_limits=False), data=st.data())
def test_rows_that_promise_equal_ranks_keep_clients_of_one_ceiling_together(name, signals, data):
    row = rank_scheduler(name)
    assert len(set(ranks_under(row, signals, data.draw(option_values(row))).values())) == 1


@pytest.mark.parametrize("name", [name for name, row in RANK_SCHEDULERS.items() if not row.equal_ranks])
def test_rows_that_promise_no_equal_ranks_really_part_clients_of_one_ceiling(name):
    values, fields = WITNESSES[name]
    assert len(set(ranks_under(rank_scheduler(name), signals_of({"c0": 8, "c1": 8}, **fields), values).values())) == 2


@EVERY
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"capabilities": {"c0": Capability()}}, id="nothing measured"),
        pytest.param(
            {"capabilities": {"c0": Capability(**dict.fromkeys(Capability.__struct_fields__, 1e30))}}, id="huge machine"
        ),
        pytest.param({"spectra": {"m": [1e308, 1e300]}}, id="huge spectrum"),
        pytest.param({"spectra": {"m": [5e-324], "n": [], "o": [0.0]}}, id="tiny spectrum"),
        pytest.param({"spent_bytes": 10**18}, id="overspent"),
        pytest.param({"rounds_done": 10, "round_index": 10}, id="run over"),
        pytest.param({"rounds_done": 1, "num_rounds": 1}, id="one round"),
        pytest.param({"costs": linear_costs(10**12, deadline_s=1e-3)}, id="huge model, no time"),
    ],
)
def test_one_client_of_rank_one_stays_there_whatever_else_holds(name, fields):
    row, signals = rank_scheduler(name), signals_of({"c0": 1}, **fields)
    on = {"budget_megabytes": 1.0, "rank_per_sqrt_example": 0.001}
    values = {option.name: on[option.name] for option in row.options if option.name in on}
    decision = decide(signals, [(name, row.bounds(signals, values))])
    assert (dict(decision.ranks), dict(decision.reasons)) == ({"c0": 1}, {})
