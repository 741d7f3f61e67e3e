"""HetLoRA's pruning: the server keeps to what clients decided."""

from hypothesis import given

from tasks.rank_schedulers import rank_scheduler
from tasks.rounds.capabilities import Limit
from tests.rank_schedulers.cases import rank_signals, ranks_under, signals_of

ROW = rank_scheduler("hetlora_prune")


def test_a_client_is_bounded_by_what_it_pruned_itself_to():
    limits = {"c0": Limit(pruned_rank=3), "c1": Limit(memory_rank=2), "gone": Limit(pruned_rank=1)}
    bounds = ROW.bounds(signals_of({"c0": 8, "c1": 8, "c2": 8}, limits=limits))
    assert {client: bound.rank for client, bound in bounds.items()} == {"c0": 3}
    assert bounds["c0"].reason == "the client pruned itself to rank 3"


@given(rank_signals(has_memory_limits=False))
def test_ranks_are_the_smaller_of_ceiling_and_pruned_rank(signals):
    ranks = ranks_under(ROW, signals, {})
    for client, ceiling in signals.ceilings.items():
        assert ranks[client] == min(ceiling, signals.limits.get(client, Limit()).pruned_rank or ceiling)
