"""Which factors FFA and alternating rounds freeze, and why in that order."""

import pytest
import torch

from tasks.errors import ModelError
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.lora import PlainLora
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.table import LOCAL_METHODS, local_method
from tasks.local_methods.together import Together
from tasks.training.adaptation import LoraSpec, adapted_modules, initial_adapter
from tests.local_methods import laws
from tests.local_methods.cases import LORA, OCCASION, dense_names, loss_of, make, model_of, trace


def fresh_adapter(base, lora=None):
    lora = LORA[base.spec.kind] if lora is None else lora
    return initial_adapter(base, lora, dict.fromkeys(adapted_modules(base, lora), 2), seed=1)


@pytest.mark.parametrize(("round_index", "frozen"), [(1, "a"), (2, "b"), (3, "a"), (10, "b")])
def test_alternating_trains_b_in_odd_rounds_and_a_in_even_ones(base, round_index, frozen):
    def made(_):
        return make("alternating")(Occasion(0, round_index))

    laws.only_what_is_frozen_at_the_start_stays(laws.training(base, made), {frozen})


def test_in_round_1_only_b_has_something_to_learn(bases):
    model = model_of(bases["mlp"], fresh_adapter(bases["mlp"]))
    loss_of(model, "mlp")().backward()
    for pair in lora_pairs(model):
        assert not pair.a.grad.any()
        assert pair.b.grad.any()


def test_embeddings_learn_in_the_second_of_two_alternating_rounds(bases):
    base, lora = bases["sequence_classification"], LoraSpec(target_modules=("word_embeddings",))
    model = model_of(base, fresh_adapter(base, lora), lora=lora)
    (pair,) = lora_pairs(model)
    trace(base, model, make("alternating")(Occasion(0, 1)))
    assert not pair.a.any()
    for parameter in (pair.a, pair.b):
        parameter.requires_grad = True
    trace(base, model, make("alternating")(Occasion(0, 2)), occasion=Occasion(0, 2))
    assert pair.a.any()


def test_ffa_refuses_a_module_that_could_never_learn(bases):
    base, lora = bases["sequence_classification"], LoraSpec(target_modules=("query", "word_embeddings"))
    model = model_of(base, fresh_adapter(base, lora), lora=lora)
    with pytest.raises(ModelError, match=r"word_embeddings.*zeros"):
        make("ffa")(OCCASION).start(model)


def test_ffa_takes_embeddings_that_have_learnt(bases):
    model = model_of(bases["sequence_classification"])
    make("ffa")(OCCASION).start(model)
    assert not any(pair.a.requires_grad for pair in lora_pairs(model))
    assert all(pair.b.requires_grad for pair in lora_pairs(model))
    assert dense_names(model)


@pytest.mark.parametrize("companion", ["rm_lora", "prefix_nested", "hetlora_prune", "proximal"])
@pytest.mark.parametrize("freezes_first", [True, False])
def test_what_one_method_freezes_no_other_moves(base, companion, freezes_first):
    def made(occasion):
        methods = [make("ffa")(occasion), make(companion)(occasion)]
        return Together(occasion, methods if freezes_first else methods[::-1])

    laws.only_what_is_frozen_at_the_start_stays(laws.training(base, made), {"a"})


def test_fdlora_trains_plainly_and_says_that_clients_keep_a_second_adapter():
    row = local_method("fdlora")
    assert row.keeps_personal
    assert type(row.method(OCCASION)) is PlainLora
    assert [name for name, other in LOCAL_METHODS.items() if other.keeps_personal] == ["fdlora"]


def test_nothing_is_frozen_in_a_model_without_pairs():
    model = torch.nn.Linear(2, 2)
    for name in ("ffa", "alternating"):
        make(name)(OCCASION).start(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
