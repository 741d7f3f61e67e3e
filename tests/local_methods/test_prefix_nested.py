"""Prefix-nested training: the added loss is that of an adapter cut to its first slots."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter, prefix
from tasks.adapters.resize import resize
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.prefix_nested import nested_ranks, only_prefixes
from tests.local_methods.cases import (
    LORA,
    OCCASION,
    SPEC,
    adapter_of,
    loss_of,
    make,
    model_of,
    plain,
    trace,
)


def cut_models(base, kept=2):
    """Return a model of rank 4, and one of rank `kept` that holds its first slots."""
    adapter = adapter_of(base)
    return model_of(base, adapter), model_of(base, prefix(adapter, dict.fromkeys(adapter.pairs, kept)))


def test_a_prefix_computes_what_the_cut_adapter_computes(base):
    whole, cut = cut_models(base)
    pairs = lora_pairs(whole)
    with only_prefixes(pairs, [2] * len(pairs)):
        nested = loss_of(whole, base.spec.kind)()
    torch.testing.assert_close(nested, loss_of(cut, base.spec.kind)())
    assert nested.item() != loss_of(whole, base.spec.kind)().item()


def test_gradients_are_those_of_the_cut_adapter_and_none_beyond_it(base):
    whole, cut = cut_models(base)
    pairs = lora_pairs(whole)
    with only_prefixes(pairs, [2] * len(pairs)):
        nested = loss_of(whole, base.spec.kind)()
    nested.backward()
    loss_of(cut, base.spec.kind)().backward()
    for pair, small in zip(pairs, lora_pairs(cut), strict=True):
        torch.testing.assert_close(pair.a.grad[:2], small.a.grad)
        torch.testing.assert_close(pair.b.grad[:, :2], small.b.grad)
        assert not pair.a.grad[2:].any()
        assert not pair.b.grad[:, 2:].any()


def test_the_model_is_whole_again_after_an_error(base):
    model = model_of(base)
    pairs = lora_pairs(model)

    def compute_and_fail():
        with only_prefixes(pairs, [1] * len(pairs)):
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        compute_and_fail()
    assert all(getattr(pair.reader, pair.attribute) is pair.a for pair in pairs)


def prefixes_seen(base, occasion, batches=40):
    """Return, batch by batch, how many slots were on while the loss was computed again."""
    model = model_of(base)
    method = make("prefix_nested")(occasion)
    method.start(model)
    pairs, seen = lora_pairs(model), []

    def look():
        masked = [getattr(pair.reader, pair.attribute).detach().flatten(1) for pair in pairs]
        seen.append(tuple(int(rows.any(dim=1).sum()) for rows in masked))
        return torch.zeros(())

    for _ in range(batches):
        method.penalty(model, look)
    return seen


def test_every_batch_has_a_prefix_of_its_own_the_same_for_all_modules(bases):
    seen = prefixes_seen(bases["mlp"], OCCASION)
    assert all(len(set(counts)) == 1 for counts in seen)
    assert set(Counter(counts[0] for counts in seen)) == {1, 2, 3}


def test_prefixes_depend_on_the_occasion_alone(bases):
    assert prefixes_seen(bases["mlp"], OCCASION) == prefixes_seen(bases["mlp"], OCCASION)
    assert prefixes_seen(bases["mlp"], OCCASION) != prefixes_seen(bases["mlp"], Occasion(99, 1))


@given(st.lists(st.integers(2, 64), min_size=1, max_size=4), st.floats(0, 1, exclude_max=True))
def test_ranks_are_cut_by_one_fraction_to_what_is_below_them(ranks, fraction):
    cut = nested_ranks(ranks, fraction)
    assert all(1 <= kept < rank for kept, rank in zip(cut, ranks, strict=True))
    assert all(kept == 1 + int(fraction * (rank - 1)) for kept, rank in zip(cut, ranks, strict=True))


def test_each_prefix_is_as_likely_as_the_others():
    assert Counter(nested_ranks([5], i / 400)[0] for i in range(400)) == {1: 100, 2: 100, 3: 100, 4: 100}


def test_the_added_loss_counts_by_its_weight(bases):
    model = model_of(bases["mlp"])
    loss = loss_of(model, "mlp")
    once, thrice = (make("prefix_nested", nested_weight=weight)(OCCASION) for weight in (1.0, 3.0))
    once.start(model)
    thrice.start(model)
    torch.testing.assert_close(thrice.penalty(model, loss), 3 * once.penalty(model, loss))


@pytest.mark.parametrize("rank", [1, 4])
def test_without_slots_to_cut_or_a_weight_nothing_is_added(bases, rank):
    model = model_of(bases["mlp"], adapter_of(bases["mlp"], rank))
    method = make("prefix_nested", nested_weight=0.0 if rank > 1 else 1.0)(OCCASION)
    method.start(model)
    assert method.penalty(model, lambda: pytest.fail("computed again")) is None


def test_dropout_drops_the_same_inputs_in_both_losses(bases):
    # The second slot is dead, so the second loss is the first once more: the gradient doubles, as at twice the rate.
    base, lora = bases["mlp"], replace(LORA["mlp"], dropout=0.5)
    whole = adapter_of(base, 1, lora=lora)
    dead = resize(whole, dict.fromkeys(whole.pairs, 2))
    adapter = LoraAdapter({p: replace(q, a=_without_second(q.a)) for p, q in dead.pairs.items()}, dead.dense)
    one_step = replace(SPEC, optimizer="sgd", max_steps=1)
    nested = trace(base, model_of(base, adapter, lora=lora), make("prefix_nested")(OCCASION), one_step)
    doubled = replace(one_step, learning_rate=2 * one_step.learning_rate)
    expected = trace(base, model_of(base, adapter, lora=lora), plain(OCCASION), doubled)
    for name, tensor in expected[-1].parameters.items():
        torch.testing.assert_close(nested[-1].parameters[name], tensor)


def _without_second(a):
    return torch.cat([a[:1], torch.zeros_like(a[1:])])
