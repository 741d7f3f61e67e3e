"""RM-LoRA's masks in real trainings, against the laws of a mask, and its options."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError, UnknownNameError
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.rm_lora import SlotMask
from tasks.local_methods.slot_masks import idle_slots
from tasks.local_methods.table import local_method
from tests.local_methods import laws, masked_laws
from tests.local_methods.cases import SPEC, make, plain, same_bits, trained

MASK_ONLY = {"rm_lambda": 0}
OPTIMIZERS = {
    "adam": replace(SPEC, optimizer="adam", max_steps=5),
    "adam with decay": replace(SPEC, optimizer="adam", weight_decay=0.1, max_steps=5),
    "adamw": replace(SPEC, optimizer="adamw", weight_decay=0.1, max_steps=5),
    "momentum": replace(SPEC, optimizer="sgd", momentum=0.9, weight_decay=0.1, max_steps=5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_slots_that_sit_out_neither_move_nor_forget(base, optimizer):
    steps = masked_laws.steps_of(base, make("rm_lora"), OPTIMIZERS[optimizer])
    masked_laws.the_first_step_trains_all(steps)
    masked_laws.later_steps_train_exactly(steps, 2)
    masked_laws.slots_that_sit_out_keep_their_moments(steps)
    masked_laws.a_and_b_train_the_same_slots(steps)
    masked_laws.draws_differ_between_steps_and_modules(steps)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_scope_round_the_same_slots_sit_out_of_every_step(bases, optimizer):
    steps = masked_laws.steps_of(bases["mlp"], make("rm_lora", mask_scope="round"), OPTIMIZERS[optimizer])
    masked_laws.slots_that_sit_out_keep_their_moments(steps)
    for path in {step.path for step in steps}:
        drawn = {step.a for step in steps if step.path == path} | {step.b for step in steps if step.path == path}
        assert len(drawn) == 1
        assert len(drawn.pop()) == 2


def test_unpaired_masks_draw_b_by_itself(bases):
    steps = masked_laws.steps_of(bases["mlp"], make("rm_lora", mask_paired=0), OPTIMIZERS["adam"])
    masked_laws.later_steps_train_exactly(steps, 2)
    assert any(step.a != step.b for step in steps)


@pytest.mark.parametrize("scope", ["step", "round"])
def test_a_share_of_one_is_plain_training_to_the_bit(base, scope):
    whole = make("rm_lora", mask_share=1.0, mask_scope=scope, **MASK_ONLY)
    assert same_bits(trained(base, whole), trained(base, plain))


def test_a_share_of_nothing_trains_one_slot(bases):
    steps = masked_laws.steps_of(bases["mlp"], make("rm_lora", mask_share=0.0), OPTIMIZERS["adam"])
    masked_laws.later_steps_train_exactly(steps, 1)


@pytest.mark.parametrize("scope", ["step", "round"])
def test_dense_tensors_take_every_step_that_factors_sit_out(base, scope):
    laws.dense_tensors_take_every_step(laws.training(base, make("rm_lora", mask_share=0.0, mask_scope=scope)))


def test_a_frozen_factor_is_not_held():
    pair = type("Pair", (), {"path": "m", "rank": 4, "a": torch.zeros(4, 1), "b": torch.zeros(1, 4)})()
    pair.b.requires_grad = True
    found = list(SlotMask(0, "round", 0.5, is_paired=True).idle(pair, 1))
    assert [dimension for _, dimension, _ in found] == [1]


@given(st.integers(1, 64), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_idle_slots_are_distinct_and_as_many_as_the_share_leaves(rank, share, seed):
    slots = idle_slots(rank, share, seed=seed)
    assert len(set(slots.tolist())) == len(slots) == rank - max(1, int(np.floor(share * rank + 0.5)))
    assert all(0 <= slot < rank for slot in slots)


@pytest.mark.parametrize(("rank", "trained_slots"), [(8, 2), (8, 4), (4, 2), (5, 3)])
def test_every_slot_is_visited_as_often_as_the_others(rank, trained_slots):
    # Each visit is one of `draws` Bernoulli trials of k / r: five standard deviations.
    draws, chance = 2000, trained_slots / rank
    idle = Counter(s for seed in range(draws) for s in idle_slots(rank, chance, seed=seed).tolist())
    allowed = 5 * (draws * chance * (1 - chance)) ** 0.5
    assert all(abs(draws - idle[slot] - draws * chance) < allowed for slot in range(rank))


def test_the_seed_of_the_occasion_draws_the_slots(bases):
    first, second = (trained(bases["mlp"], make("rm_lora", **MASK_ONLY), occasion=Occasion(seed, 1)) for seed in (0, 1))
    assert not same_bits(first, second)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"rm_form": "frd"}, UnknownNameError),
        ({"mask_scope": "epoch"}, UnknownNameError),
        ({"mask_share": 1.5}, ConfigError),
        ({"rm_lambda": -1}, ConfigError),
    ],
)
def test_options_out_of_bounds_are_refused(values, error):
    with pytest.raises(error):
        local_method("rm_lora").method(Occasion(0, 1), values)
