"""The tests of local methods can fail: each of these faults, some of them published, turns one of them red."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.local_methods import hetlora_prune, prefix_nested, regulariser, rm_lora, slot_masks
from tasks.local_methods.alternating import Alternating
from tasks.local_methods.ffa import Ffa
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.proximal import Proximal
from tasks.local_methods.rm_lora import RmLora
from tasks.rounds.seeds import derive_seed
from tests.local_methods import (
    laws,
    masked_laws,
    test_freezing,
    test_hetlora_prune,
    test_prefix_nested,
    test_proximal,
    test_regulariser,
    test_rm_lora,
)
from tests.local_methods.cases import SPEC, dense_names, make

Mutate = Callable[[pytest.MonkeyPatch], None]

before_step, penalty = RmLora.before_step, Proximal.penalty


def masks_the_head_too(patch):
    def hold_everything(self, model, optimizer, step):
        before_step(self, model, optimizer, step)
        if step > 1:
            dense = [model.get_parameter(name) for name in dense_names(model)]
            self._held += [slot_masks.hold(optimizer, p, 0, np.arange(len(p))) for p in dense]

    patch.setattr(RmLora, "before_step", hold_everything)


def only_zeroes_gradients(patch):
    def zero(self, model, optimizer, step):
        before_step(self, model, optimizer, step)
        for held in self._held:
            held.parameter.grad.index_fill_(held.dimension, held.slots, 0.0)
        self._held = []

    patch.setattr(RmLora, "before_step", zero)


def forgets_moments(patch):
    patch.setattr(slot_masks, "_moments", lambda optimizer, parameter: {})


def forgets_that_there_were_no_moments(patch):
    real = slot_masks.put_back

    def put_back(optimizer, held):
        remembered = {k: v.clone() for k, v in optimizer.state[held.parameter].items() if torch.is_tensor(v)}
        real(optimizer, held)
        if not held.moments:
            optimizer.state[held.parameter].update(remembered)

    patch.setattr(rm_lora, "put_back", put_back)


def seed_ignores_the_step(patch):
    patch.setattr(rm_lora, "derive_seed", lambda seed, name, step, *rest: derive_seed(seed, name, *rest))


def seed_ignores_the_module(patch):
    patch.setattr(rm_lora, "derive_seed", lambda seed, name, step, path, factor: derive_seed(seed, step, factor))


def draws_with_replacement(patch):
    def idle_slots(rank, share, *, seed):
        return np.random.default_rng(seed).choice(rank, size=rank - max(1, int(share * rank + 0.5)), replace=True)

    patch.setattr(rm_lora, "idle_slots", idle_slots)


def penalty_is_squared(patch):
    real = regulariser.orthogonality
    patch.setattr(regulariser, "orthogonality", lambda slots, norm: real(slots, norm).square())


def cosine_counts_a_slot_with_itself(patch):
    real = regulariser.mean_cosine
    patch.setattr(regulariser, "mean_cosine", lambda slots: real(slots) + 1 / (len(slots) - 1))


def target_ignores_the_scaling(patch):
    real = regulariser.orthogonality
    patch.setattr(regulariser, "orthogonality", lambda slots, norm: real(slots, 1.0))


def mu_instead_of_half_of_it(patch):
    patch.setattr(Proximal, "penalty", lambda *arguments: 2 * penalty(*arguments))


def pulls_factors_only(patch):
    def start(self, model):
        pairs = {id(p) for pair in lora_pairs(model) for p in (pair.a, pair.b)}
        self._received = {n: p.detach().clone() for n, p in model.named_parameters() if id(p) in pairs}

    patch.setattr(Proximal, "start", start)


def tail_is_one_slot_short(patch):
    real = hetlora_prune.tail_start
    patch.setattr(hetlora_prune, "tail_start", lambda rank, gamma: real(rank, gamma) + 1)


def prunes_what_did_not_fall(patch):
    real = hetlora_prune.HetloraPrune.start

    def start(self, model):
        real(self, model)
        self._received = np.nextafter(self._received, np.inf)

    patch.setattr(hetlora_prune.HetloraPrune, "start", start)


def switches_the_prefix_off(patch):
    real = prefix_nested._only_first
    patch.setattr(prefix_nested, "_only_first", lambda a, count: a - real(a, len(a) - count))


def draws_one_prefix_a_round(patch):
    patch.setattr(prefix_nested, "derive_seed", lambda seed, *labels: derive_seed(seed))


def freezes_the_wrong_factor(patch):
    def start(self, model):
        for pair in lora_pairs(model):
            pair.b.requires_grad = False

    patch.setattr(Ffa, "start", start)


def starts_with_a(patch):
    real = Alternating.start

    def start(self, model):
        self.occasion = Occasion(self.occasion.seed, self.occasion.round_index + 1)
        real(self, model)

    patch.setattr(Alternating, "start", start)


def sit_out(base):
    test_rm_lora.test_slots_that_sit_out_neither_move_nor_forget(base, "adam")


def as_many_as_the_share_says(base):
    # Twelve steps: with replacement, two of four slots differ three times in four.
    steps = masked_laws.steps_of(base, make("rm_lora"), replace(SPEC, max_steps=12))
    masked_laws.later_steps_train_exactly(steps, 2)


def half_mu_times_the_distance(base):
    test_proximal.test_the_penalty_is_half_mu_times_the_squared_distance_over_all_trained_tensors(base)


def ffa_freezes_a(base):
    laws.only_what_is_frozen_at_the_start_stays(laws.training(base, make("ffa")), {"a"})


RED: dict[Mutate, Callable] = {
    masks_the_head_too: lambda base: laws.dense_tensors_take_every_step(laws.training(base, make("rm_lora"))),
    only_zeroes_gradients: sit_out,
    forgets_moments: sit_out,
    forgets_that_there_were_no_moments: lambda base: (
        test_rm_lora.test_with_scope_round_the_same_slots_sit_out_of_every_step({"mlp": base}, "momentum")
    ),
    seed_ignores_the_step: sit_out,
    seed_ignores_the_module: sit_out,
    draws_with_replacement: as_many_as_the_share_says,
    penalty_is_squared: lambda _: test_regulariser.test_the_penalty_is_the_mean_over_matrices_times_its_strength(),
    cosine_counts_a_slot_with_itself: lambda _: test_regulariser.test_orthonormal_slots_cost_nothing("cosine"),
    target_ignores_the_scaling: lambda _: test_regulariser.test_the_default_length_makes_an_update_of_spectral_norm_1(),
    mu_instead_of_half_of_it: half_mu_times_the_distance,
    pulls_factors_only: half_mu_times_the_distance,
    tail_is_one_slot_short: lambda base: (
        test_hetlora_prune.test_the_penalty_is_lambda_times_the_tails_norms_multiplied_and_summed(base, 0.5, 2)
    ),
    prunes_what_did_not_fall: lambda base: test_hetlora_prune.test_a_tail_that_did_not_fall_stays(base, 1.0),
    switches_the_prefix_off: test_prefix_nested.test_a_prefix_computes_what_the_cut_adapter_computes,
    draws_one_prefix_a_round: lambda base: (
        test_prefix_nested.test_every_batch_has_a_prefix_of_its_own_the_same_for_all_modules({"mlp": base})
    ),
    freezes_the_wrong_factor: ffa_freezes_a,
    starts_with_a: lambda base: test_freezing.test_alternating_trains_b_in_odd_rounds_and_a_in_even_ones(base, 1, "a"),
}


@pytest.mark.parametrize("mutate", RED, ids=lambda mutate: mutate.__name__)
def test_a_fault_turns_its_test_red(bases, mutate):
    check = RED[mutate]
    check(bases["mlp"])
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        with pytest.raises(AssertionError):
            check(bases["mlp"])
