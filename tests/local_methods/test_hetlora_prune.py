"""HetLoRA's self-pruning: the penalty on tails against its formula, and when and how far a client prunes."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.local_methods.hetlora_prune import pruned_ranks, tail_start
from tasks.local_methods.pairs import lora_pairs
from tests.local_methods.cases import OCCASION, SPEC, adapter_of, make, model_of, plain, same_bits, trace, trained

HALF = {"prune_gamma": 0.5, "prune_lambda": 0.2, "prune_min_rank": 1}


def no_loss():
    raise AssertionError("the task's loss is not needed")


def received(base, *, adapter=None, **values):
    """Return a method that has seen a model of rank 4, the model, and its ranks."""
    model = model_of(base, adapter)
    method = make("hetlora_prune", **{**HALF, **values})(OCCASION)
    method.start(model)
    return method, model, {pair.path: pair.rank for pair in lora_pairs(model)}


@torch.no_grad()
def scale_slots(model, first, factor):
    for pair in lora_pairs(model):
        pair.a[first:] *= factor


def frobenius(rows) -> float:
    return math.sqrt(math.fsum(x * x for row in rows for x in row))


@pytest.mark.parametrize(("gamma", "start"), [(0.5, 2), (0.99, 3), (0.74, 2), (0.76, 3), (0.0, 0)])
def test_the_penalty_is_lambda_times_the_tails_norms_multiplied_and_summed(base, gamma, start):
    method, _, _ = received(base, prune_gamma=gamma)
    by_hand = [
        frobenius(pair.a[start:].tolist()) * frobenius([row[start:] for row in pair.b.tolist()])
        for pair in adapter_of(base).pairs.values()
    ]
    assert method.penalty(None, no_loss).item() == pytest.approx(0.2 * math.fsum(by_hand), rel=1e-5)


def test_the_penalty_pulls_on_the_tail_alone(base):
    method, model, _ = received(base)
    method.penalty(model, no_loss).backward()
    for pair in lora_pairs(model):
        assert not pair.a.grad[:2].any()
        assert not pair.b.grad[:, :2].any()
        assert (pair.a.grad[2:] * pair.a[2:]).sum() > 0
        assert (pair.b.grad[:, 2:] * pair.b[:, 2:]).sum() > 0


def test_a_tail_of_zeros_has_a_finite_gradient(base):
    start = adapter_of(base)
    zeros = LoraAdapter({p: replace(q, b=torch.zeros_like(q.b)) for p, q in start.pairs.items()}, start.dense)
    method, model, _ = received(base, adapter=zeros)
    method.penalty(model, no_loss).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_without_a_strength_training_is_plain_to_the_bit(bases):
    bare = make("hetlora_prune", prune_lambda=0)
    assert same_bits(trained(bases["cnn"], bare), trained(bases["cnn"], plain))


def test_a_tail_that_fell_is_dropped(base):
    method, model, ranks = received(base)
    scale_slots(model, 2, 0.999)
    assert method.kept_ranks(model, ranks) == dict.fromkeys(ranks, 2)


@pytest.mark.parametrize("factor", [1.0, 1.001, math.nan])
def test_a_tail_that_did_not_fall_stays(base, factor):
    method, model, ranks = received(base)
    scale_slots(model, 2, factor)
    assert method.kept_ranks(model, ranks) == ranks


def test_the_head_of_the_slots_is_not_looked_at(bases):
    method, model, ranks = received(bases["mlp"])
    with torch.no_grad():
        for pair in lora_pairs(model):
            pair.a[:2] *= 0.5
    assert method.kept_ranks(model, ranks) == ranks


def test_a_tail_of_zeros_on_receipt_cannot_fall(bases):
    start = adapter_of(bases["mlp"])
    zeros = LoraAdapter({p: replace(q, b=torch.zeros_like(q.b)) for p, q in start.pairs.items()}, start.dense)
    method, model, ranks = received(bases["mlp"], adapter=zeros)
    assert method.kept_ranks(model, ranks) == ranks


def test_one_sum_over_all_modules_decides_for_all(bases):
    # One module's tail grows a little, the others' shrink: together they fell.
    method, model, ranks = received(bases["mlp"])
    first, *others = lora_pairs(model)
    with torch.no_grad():
        first.a[2:] *= 1.01
        for pair in others:
            pair.a[2:] *= 0.1
    assert method.kept_ranks(model, ranks) == dict.fromkeys(ranks, 2)


def test_a_strong_penalty_makes_a_real_training_prune(bases):
    base = bases["mlp"]
    model = model_of(base)
    method = make("hetlora_prune", **{**HALF, "prune_lambda": 10})(OCCASION)
    trace(base, model, method, replace(SPEC, max_steps=5))
    ranks = {pair.path: pair.rank for pair in lora_pairs(model)}
    assert method.kept_ranks(model, ranks) == dict.fromkeys(ranks, 2)


def test_ranks_that_another_method_lowered_stay_low(bases):
    method, model, ranks = received(bases["mlp"])
    scale_slots(model, 2, 0.5)
    assert method.kept_ranks(model, dict.fromkeys(ranks, 1)) == dict.fromkeys(ranks, 1)


percent = st.integers(0, 99)


@given(st.integers(1, 4096), percent)
def test_the_tail_starts_at_the_whole_part_of_gamma_times_the_rank(rank, hundredths):
    start = tail_start(rank, hundredths / 100)
    assert start == math.floor(Fraction(hundredths, 100) * rank)
    assert start < rank


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 64), min_size=1), percent, st.integers(1, 64))
def test_modules_keep_their_share_of_the_minimum_and_never_grow(ranks, hundredths, min_rank):
    kept = pruned_ranks(ranks, gamma=hundredths / 100, min_rank=min_rank)
    client = max(ranks.values())
    for path, rank in ranks.items():
        least = min(rank, max(1, math.floor(Fraction(min_rank * rank, client) + Fraction(1, 2))))
        assert kept[path] == max(least, math.floor(Fraction(hundredths, 100) * rank))
    assert max(kept.values()) >= min(client, min_rank)


@pytest.mark.parametrize(
    ("ranks", "kept"),
    [
        ({"a": 8}, {"a": 7}),
        ({"a": 4}, {"a": 4}),
        ({"a": 2}, {"a": 2}),
        ({"a": 8, "b": 4}, {"a": 7, "b": 3}),
        ({"a": 200, "b": 100}, {"a": 198, "b": 99}),
    ],
)
def test_the_published_numbers_take_a_slot_at_a_time(ranks, kept):
    assert pruned_ranks(ranks, gamma=0.99, min_rank=4) == kept
