"""What a row says a round trains is what trainings move, and so all that an update need hold."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.cohort import aggregate
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.promises import trained_in, turn
from tasks.local_methods.table import LOCAL_METHODS, local_method
from tests.aggregators.cases import client
from tests.local_methods.cases import factor_names, make, model_of, trace
from tests.strategies import normal

FACTORS = {"a": {"a"}, "b": {"b"}, "both": {"a", "b"}}
FREEZE = [name for name, row in LOCAL_METHODS.items() if row.trains != "both"]


def moved(base, name: str, rounds_done: int) -> set[str]:
    """Factors that a training in some round moves, in any module."""
    occasion = Occasion(0, rounds_done + 1)
    model = model_of(base)
    steps = trace(base, model, make(name)(occasion), occasion=occasion)
    first, last = steps[0].parameters, steps[-1].parameters
    names = factor_names(model).values()
    return {f for a, b in names for f, n in (("a", a), ("b", b)) if not torch.equal(first[n], last[n])}


@pytest.mark.parametrize("rounds_done", range(5))
@pytest.mark.parametrize("name", [*FREEZE, "lora"])
def test_a_round_moves_what_its_row_promises(bases, name, rounds_done):
    assert moved(bases["mlp"], name, rounds_done) == FACTORS[local_method(name).trains_in(rounds_done)]


@given(rounds_done=st.integers(0, 10**6))
def test_turns_alternate_and_b_goes_first(rounds_done):
    assert turn(0) == "b"
    assert {turn(rounds_done), turn(rounds_done + 1)} == {"a", "b"}


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ([], ["both", "both"]),
        (["lora", "proximal"], ["both", "both"]),
        (["ffa"], ["b", "b"]),
        (["proximal", "alternating"], ["b", "a"]),
        (["alternating", "fdlora"], ["b", "a"]),
    ],
)
def test_methods_together_train_what_none_of_them_freezes(names, parts):
    rows = [local_method(name) for name in names]
    assert [trained_in(rows, done) for done in (0, 1)] == parts


# --- a factor a that nobody trains ----------------------------------------------------------------------------


@settings(derandomize=True, max_examples=20)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    name=st.sampled_from(["rbla", "fedavg", "ffa"]),
    seed=st.integers(0, 2**20),
)
def test_means_over_owners_never_move_an_a_that_clients_share(ranks, name, seed):
    old = client({"m": 4}, seed)
    rank = {"fedavg": ranks[0]}
    updates = [_with_b(old, rank.get(name, r), seed + k) for k, r in enumerate(ranks, start=1)]
    weights = [1.0 + 0.7 * k for k in range(len(updates))]
    assert torch.equal(aggregate(name, updates, weights, previous=old).pairs["m"].a, old.pairs["m"].a)


@pytest.mark.parametrize("name", ["zero_pad", "hetlora", "flexlora", "raflora", "delta_svd"])
def test_other_methods_do_move_it(name):
    old = client({"m": 4}, 3)
    updates = [_with_b(old, rank, rank) for rank in (1, 4)]
    after = aggregate(name, updates, [1.0, 2.0], previous=old).pairs["m"].a
    assert not torch.equal(after[:4], old.pairs["m"].a)


def test_at_one_rank_zero_padding_does_not_move_it_either():
    old = client({"m": 4}, 3)
    after = aggregate("zero_pad", [_with_b(old, 4, seed) for seed in (1, 2)], [1.0, 2.0], previous=old)
    assert torch.equal(after.pairs["m"].a, old.pairs["m"].a)


def _with_b(old: LoraAdapter, rank: int, seed: int) -> LoraAdapter:
    """What a client of this rank returns that trains `b` alone."""
    pair = old.pairs["m"]
    return LoraAdapter({"m": replace(pair, a=pair.a[:rank], b=normal((len(pair.b), rank), seed))})
