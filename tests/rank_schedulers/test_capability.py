"""Capabilities: each resource alone against the cost model's worked numbers, all together against a loop over ranks."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rank_schedulers import RankCosts, rank_scheduler
from tasks.rounds.capabilities import Capability
from tests.rank_schedulers.cases import linear_costs, option_values, rank_signals, ranks_under, signals_of

ROW = rank_scheduler("capability")
# A model of 7e9 numbers with adapters on two of its attention's matrices: 524,288 numbers for each slot.
LLAMA = RankCosts(values=lambda rank: 524_288 * rank, base_values=6_738_415_616, deadline_s=100.0)
FIELDS = Capability.__struct_fields__
STATE_OF_16 = 134_217_728
FREELY = {"deadline_share": 1.0, "memory_share": 1.0}


def rank_of(capability, costs=LLAMA, values=FREELY):
    signals = signals_of({"c0": 64}, costs=costs, capabilities={"c0": capability})
    return ranks_under(ROW, signals, values)["c0"]


def reason_of(capability, costs=LLAMA, values=FREELY):
    return ROW.bounds(signals_of({"c0": 64}, costs=costs, capabilities={"c0": capability}), values)["c0"].reason


def rank_by_trying(known, costs, ceiling, values):
    """Try every rank from the ceiling down, each sum written out."""
    for rank in range(ceiling, 1, -1):
        numbers = costs.values(rank)
        memory = 4 * (numbers + numbers + 2 * numbers) + known.activation_bytes
        seconds = 0.0
        if known.downlink_bytes_per_s:
            seconds += (numbers * costs.downlink_bytes + costs.overhead_bytes / 2) / known.downlink_bytes_per_s
        if known.flops_per_s:
            extra = 6 * numbers / (4 * costs.base_values)
            seconds += (known.work_flops + known.work_flops * extra) / known.flops_per_s
        if known.uplink_bytes_per_s:
            seconds += (numbers * costs.uplink_bytes + costs.overhead_bytes / 2) / known.uplink_bytes_per_s
        fits_memory = not known.memory_bytes or memory <= values["memory_share"] * known.memory_bytes
        prior = values["rank_per_sqrt_example"] * known.num_examples**0.5
        if fits_memory and seconds <= values["deadline_share"] * costs.deadline_s and (not prior or rank <= prior):
            return rank
    return 1


@pytest.mark.parametrize(("beside", "rank"), [(0, 16), (-1, 15), (STATE_OF_16 // 16, 17)])
def test_memory_holds_sixteen_bytes_for_every_number_beside_the_activations(beside, rank):
    assert rank_of(Capability(memory_bytes=1e9 + STATE_OF_16 + beside, activation_bytes=1e9)) == rank


def test_only_a_share_of_the_memory_is_taken():
    assert rank_of(Capability(memory_bytes=STATE_OF_16 * 2.0), values={"memory_share": 0.5}) == 16


def test_training_time_counts_six_for_a_trained_number_beside_four_for_a_frozen_one():
    at_16 = 1 + 6 * 524_288 * 16 / (4 * 6_738_415_616)
    assert at_16 == pytest.approx(1.0019, abs=5e-5)
    assert rank_of(Capability(work_flops=1e15, flops_per_s=1e13 * at_16 * (1 + 1e-9))) == 16
    assert rank_of(Capability(work_flops=1e15, flops_per_s=1e13 * at_16 * (1 - 1e-9))) == 15


@pytest.mark.parametrize("link", ["uplink_bytes_per_s", "downlink_bytes_per_s"])
def test_link_time_counts_the_bytes_of_its_direction_and_half_the_overhead(link):
    costs = linear_costs(1000, uplink_bytes=2.0, downlink_bytes=2.0, overhead_bytes=4000.0, deadline_s=10.0)
    assert rank_of(Capability(**{link: 2200.0}), costs) == 10
    assert rank_of(Capability(**{link: 2199.0}), costs) == 9
    assert rank_of(Capability(**{link: 2200.0}), costs, {"deadline_share": 0.5}) == 4


def test_times_of_one_round_add_up():
    costs = linear_costs(1000, uplink_bytes=1.0, downlink_bytes=1.0, deadline_s=10.0, base_values=10**12)
    link = {"uplink_bytes_per_s": 1000.0, "downlink_bytes_per_s": 1000.0}
    assert rank_of(Capability(**link), costs) == 5
    assert rank_of(Capability(**link, flops_per_s=1.0, work_flops=3.9), costs) == 3


def test_data_bound_by_the_root_of_the_examples_only_where_asked_to():
    assert rank_of(Capability(num_examples=100.0)) == 64
    assert rank_of(Capability(num_examples=100.0), values={"rank_per_sqrt_example": 0.75}) == 7
    assert rank_of(Capability(num_examples=1.0), values={"rank_per_sqrt_example": 0.5}) == 1


def test_clients_never_heard_of_start_low_and_those_that_measured_nothing_are_free():
    signals = signals_of({"c0": 8, "c1": 8}, capabilities={"c1": Capability()})
    assert ranks_under(ROW, signals, {}) == {"c0": 1, "c1": 8}
    assert ranks_under(ROW, signals, {"unknown_rank": 3}) == {"c0": 3, "c1": 8}


def test_a_machine_with_plenty_of_everything_is_not_bounded():
    plenty = Capability(**dict.fromkeys(FIELDS, 1e12) | {"work_flops": 1.0, "activation_bytes": 1.0})
    assert ROW.bounds(signals_of({"c0": 8}, capabilities={"c0": plenty})) == {}


def test_a_link_too_slow_for_rank_one_bounds_it_by_one_and_says_so():
    slow = Capability(uplink_bytes_per_s=1.0)
    assert rank_of(slow) == 1
    assert reason_of(slow) == (
        "not even rank 1 fits: 100 s of a deadline of 100 s, most of them for the upload at 1e-06 MB/s"
    )


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        (
            Capability(memory_bytes=2e8, uplink_bytes_per_s=1e7, activation_bytes=1e8),
            "200 MB of memory, 100 MB for the adapter",
        ),
        (
            Capability(memory_bytes=2e9, uplink_bytes_per_s=1e6, downlink_bytes_per_s=1e7),
            "100 s of a deadline of 100 s, most of them for the upload at 1 MB/s",
        ),
        (
            Capability(flops_per_s=1e13, work_flops=9.99e14, downlink_bytes_per_s=1e8),
            "100 s of a deadline of 100 s, most of them for training at 1e+07 MFLOP/s",
        ),
    ],
)
def test_reason_names_what_is_shortest_with_its_figure(capability, reason):
    assert reason_of(capability) == reason


@settings(max_examples=100, derandomize=True)
@given(signals=rank_signals(has_memory_limits=False), data=st.data())
def test_ranks_are_the_largest_that_a_loop_over_ranks_finds(signals, data):
    values = {option.name: option.default for option in ROW.options} | data.draw(option_values(ROW))
    ranks = ranks_under(ROW, signals, values)
    for client, known in signals.capabilities.items():
        assert ranks[client] == rank_by_trying(known, signals.costs, signals.ceilings[client], values)


@settings(max_examples=100, derandomize=True)
@given(signals=rank_signals(), data=st.data())
def test_more_of_anything_never_lowers_a_rank(signals, data):
    values = data.draw(option_values(ROW))
    rising = ("memory_bytes", "uplink_bytes_per_s", "downlink_bytes_per_s", "flops_per_s", "num_examples")
    field, factor = data.draw(st.sampled_from(rising)), data.draw(st.floats(1.0, 1e6))
    better = {
        client: msgspec.structs.replace(known, **{field: factor * getattr(known, field)})
        for client, known in signals.capabilities.items()
    }
    before, after = (ranks_under(ROW, s, values) for s in (signals, replace(signals, capabilities=better)))
    assert all(after[client] >= rank for client, rank in before.items())


@settings(max_examples=40, derandomize=True)
@given(signals=rank_signals(has_equal_ceilings=True, has_memory_limits=False), data=st.data())
def test_equal_machines_get_equal_ranks(signals, data):
    known = next(iter(signals.capabilities.values()), Capability())
    alike = replace(signals, capabilities=dict.fromkeys(signals.ranks, known))
    assert len(set(ranks_under(ROW, alike, data.draw(option_values(ROW))).values())) == 1
