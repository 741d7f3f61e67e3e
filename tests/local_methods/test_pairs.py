"""The pairs found inside a model are those that its adapter has, under the same paths and scalings."""

from dataclasses import replace

import torch

from tasks.adapters.lora import fold_scaling
from tasks.local_methods.pairs import lora_pairs, wide
from tasks.training.adaptation import extract_adapter
from tests.local_methods.cases import LORA, adapter_of, model_of


def test_pairs_are_those_of_the_adapter(base):
    lora = replace(LORA[base.spec.kind], alpha=8.0)
    model = model_of(base, adapter_of(base, lora=lora), lora=lora)
    adapter = fold_scaling(extract_adapter(model))
    pairs = lora_pairs(model)
    assert sorted(pair.path for pair in pairs) == sorted(adapter.pairs)
    for pair in pairs:
        expected = adapter.pairs[pair.path]
        assert (pair.rank, pair.scaling) == (expected.rank, 2.0)
        assert torch.equal(pair.a_slots, expected.a)
        assert torch.equal(pair.b_slots.T * pair.scaling, expected.b)


def test_pairs_share_memory_with_the_model(base):
    model = model_of(base)
    with torch.no_grad():
        for pair in lora_pairs(model):
            pair.a.fill_(2.0)
            pair.b.fill_(3.0)
    adapter = extract_adapter(model)
    assert all((pair.a == 2).all() and (pair.b == 3).all() for pair in adapter.pairs.values())


def test_the_layer_reads_a_where_the_pair_says(base):
    for pair in lora_pairs(model_of(base)):
        assert getattr(pair.reader, pair.attribute) is pair.a


def test_a_model_without_lora_has_no_pairs():
    assert lora_pairs(torch.nn.Sequential(torch.nn.Linear(2, 3))) == []


def test_wide_widens_halves_and_leaves_the_rest():
    full, double = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert wide(torch.ones(2, dtype=torch.bfloat16)).dtype is torch.float32
    assert wide(full) is full
    assert wide(double) is double
