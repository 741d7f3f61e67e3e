"""Sparse training: the strongest slots learn as if the others were zero, and the others come back as they were."""

from dataclasses import replace

import pytest
import torch

from tasks.adapters.lora import LoraAdapter
from tasks.errors import ConfigError
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.prefix_nested import only_prefixes
from tasks.local_methods.sparse import Sparse
from tasks.local_methods.table import local_method
from tasks.local_methods.together import Together
from tasks.training.adaptation import extract_adapter
from tests.local_methods import laws, masked_laws
from tests.local_methods.cases import (
    OCCASION,
    SPEC,
    adapter_of,
    factor_names,
    loss_of,
    make,
    model_of,
    plain,
    same_bits,
    trace,
    trained,
)
from tests.oracles.sparse import slots_on

OPTIMIZERS = {
    "adam with decay": replace(SPEC, optimizer="adam", weight_decay=0.1, max_steps=4),
    "adamw": replace(SPEC, optimizer="adamw", weight_decay=0.1, max_steps=4),
    "momentum": replace(SPEC, optimizer="sgd", momentum=0.9, weight_decay=0.1, max_steps=4),
}
SGD = replace(SPEC, optimizer="sgd", momentum=0.0, weight_decay=0.0)


def expected_on(base, sparsity: float, rank: int = 4) -> dict[str, set[int]]:
    """Return, module by module, what the oracle leaves on."""
    pairs = lora_pairs(model_of(base, adapter_of(base, rank)))
    return {p.path: slots_on(p.a_slots.tolist(), p.b_slots.tolist(), sparsity) for p in pairs}


def moved(base, made, spec=SPEC) -> dict[str, set[int]]:
    """Return, module by module, the slots that any step moved; those of `a` and `b` are the same."""
    steps = masked_laws.steps_of(base, made, spec)
    masked_laws.slots_that_sit_out_keep_their_moments(steps)
    masked_laws.a_and_b_train_the_same_slots(steps)
    found: dict[str, set[int]] = {}
    for step in steps:
        found.setdefault(step.path, set()).update(step.a)
    return found


def only(adapter: LoraAdapter, on: dict[str, set[int]]) -> LoraAdapter:
    """Return an adapter whose other slots are zero."""
    pairs = {}
    for path, pair in adapter.pairs.items():
        keep = torch.tensor([float(slot in on[path]) for slot in range(pair.rank)])
        pairs[path] = replace(pair, a=pair.a * keep[:, None], b=pair.b * keep)
    return LoraAdapter(pairs, adapter.dense)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_strongest_slots_learn_and_the_others_keep_their_bits(base, optimizer):
    assert moved(base, make("sparse"), OPTIMIZERS[optimizer]) == expected_on(base, 0.5)


@pytest.mark.parametrize(("sparsity", "count"), [(0.25, 3), (0.375, 3), (0.6, 2), (0.7, 1), (0.95, 1)])
def test_the_share_says_how_many_are_on(bases, sparsity, count):
    found = moved(bases["mlp"], make("sparse", sparsity=sparsity))
    assert found == expected_on(bases["mlp"], sparsity)
    assert {len(slots) for slots in found.values()} == {count}


def test_it_trains_what_plain_training_of_the_cut_adapter_would(base):
    # The slots that are off are put to zero by hand, and get no gradient while both of their factors are zero.
    start, on = adapter_of(base), expected_on(base, 0.5)
    masked, cut = model_of(base, start), model_of(base, only(start, on))
    trace(base, masked, make("sparse")(OCCASION), SGD)
    trace(base, cut, plain(OCCASION), SGD)
    ours, theirs = only(extract_adapter(masked), on), extract_adapter(cut)
    for path, theirs_pair in theirs.pairs.items():
        assert torch.allclose(ours.pairs[path].a, theirs_pair.a, atol=1e-6)
        assert torch.allclose(ours.pairs[path].b, theirs_pair.b, atol=1e-6)
    assert all(torch.allclose(tensor, theirs.dense[name], atol=1e-6) for name, tensor in ours.dense.items())
    before = only(start, on)
    assert all(not torch.equal(pair.b, before.pairs[path].b) for path, pair in ours.pairs.items())


def test_a_pass_of_training_does_without_the_others_and_no_other_pass_does(base):
    start, kind = adapter_of(base), base.spec.kind
    model, cut = model_of(base, start), model_of(base, only(start, expected_on(base, 0.5)))
    whole = loss_of(model.eval(), kind)()
    method = make("sparse")(OCCASION)
    method.start(model)
    assert torch.equal(loss_of(model.eval(), kind)(), whole)
    # No dropout in either: what differs between the modes is the mask alone.
    model.get_base_model().training = True
    assert torch.allclose(loss_of(model, kind)(), loss_of(cut.eval(), kind)(), atol=1e-6)
    assert not torch.allclose(loss_of(model, kind)(), whole, atol=1e-4)
    method.finish(model)
    assert torch.equal(loss_of(model, kind)(), whole)


def test_a_prefix_that_stood_before_the_parameter_stands_after_a_pass(bases):
    model = model_of(bases["mlp"]).train()
    make("sparse")(OCCASION).start(model)
    pairs, loss = lora_pairs(model), loss_of(model, "mlp")
    with only_prefixes(pairs, [2] * len(pairs)):
        assert torch.equal(loss(), loss())
        assert all(not getattr(pair.reader, pair.attribute)[2:].any() for pair in pairs)


def test_the_model_is_plain_again_after_an_error_in_a_pass(bases):
    model = model_of(bases["mlp"]).train()
    method = make("sparse")(OCCASION)
    method.start(model)
    with pytest.raises(RuntimeError):
        model.get_base_model()(pixel_values=torch.ones(2, 1, 3, 3), labels=torch.tensor([0, 1]))
    assert all(getattr(pair.reader, pair.attribute) is pair.a for pair in lora_pairs(model))


def test_without_strength_slots_are_drawn_by_the_seed(bases):
    base = bases["mlp"]
    start = adapter_of(base)
    fresh = LoraAdapter({p: replace(q, b=torch.zeros_like(q.b)) for p, q in start.pairs.items()}, start.dense)

    def learnt(seed: int) -> dict[str, tuple[int, ...]]:
        model = model_of(base, fresh)
        trace(base, model, make("sparse")(Occasion(seed, 1)))
        return {p.path: tuple(p.b_slots.any(dim=1).nonzero().flatten().tolist()) for p in lora_pairs(model)}

    found = [learnt(seed) for seed in range(6)]
    assert all(len(slots) == 2 for one in found for slots in one.values())
    assert found[0] == learnt(0)
    assert len({slots for one in found for slots in one.values()}) > 3
    assert any(len(set(one.values())) > 1 for one in found)


def test_a_sparsity_of_0_is_plain_training_to_the_bit(base):
    assert same_bits(trained(base, make("sparse", sparsity=0)), trained(base, plain))


def test_dense_tensors_take_every_step(base):
    laws.dense_tensors_take_every_step(laws.training(base, make("sparse", sparsity=0.95)))


@pytest.mark.parametrize("companion", ["rm_lora", "prefix_nested", "hetlora_prune", "proximal", "sparse"])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_off_no_other_method_moves(bases, companion, is_first):
    def both(occasion):
        methods = [make("sparse")(occasion), make(companion)(occasion)]
        return Together(occasion, methods if is_first else methods[::-1])

    base = bases["cnn"]
    model = model_of(base)
    steps = trace(base, model, both(OCCASION))
    on = expected_on(base, 0.5)
    for path, names in factor_names(model).items():
        off = sorted(set(range(4)) - on[path])
        for dimension, name in enumerate(names):
            first, last = (s.parameters[name].index_select(dimension, torch.tensor(off)) for s in (steps[0], steps[-1]))
            assert torch.equal(first, last)
    assert all(getattr(pair.reader, pair.attribute) is pair.a for pair in lora_pairs(model))


def test_a_frozen_factor_is_left_alone(bases):
    def frozen(occasion):
        return Together(occasion, [make("ffa")(occasion), make("sparse")(occasion)])

    laws.only_what_is_frozen_at_the_start_stays(laws.training(bases["mlp"], frozen), {"a"})


def test_a_model_without_pairs_trains_as_it_is():
    model = torch.nn.Linear(2, 2)
    Sparse(OCCASION, sparsity=0.5).start(model)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("sparsity", [1.0, 0.96, -0.1])
def test_out_of_bounds_is_refused(sparsity):
    with pytest.raises(ConfigError, match="sparsity"):
        local_method("sparse").method(OCCASION, {"sparsity": sparsity})
