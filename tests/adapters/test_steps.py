"""Steps between adapters: number by number, the same bits at both ends."""

import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.lora import LayerForm, LoraAdapter, fold_scaling
from tasks.adapters.peft_files import encode_adapter, to_state_dict
from tasks.adapters.steps import advanced, same_shape, squared_length, step_between
from tasks.errors import AdapterShapeError
from tests.strategies import adapters, normal, pair_of

FORM = LayerForm("linear", (5,))


def adapter(seed: int, *, rank: int = 2, counter: int = 1) -> LoraAdapter:
    dense = {"bias": normal((4,), seed + 9), "count": torch.tensor(counter)}
    return LoraAdapter({"layers.0": pair_of(FORM, 4, rank, seed=seed)}, dense)


def test_a_step_is_the_difference_of_every_number_and_the_newer_counter():
    before, after = adapter(1), adapter(2, counter=7)
    step = step_between(before, after)
    assert torch.equal(step.pairs["layers.0"].a, after.pairs["layers.0"].a - before.pairs["layers.0"].a)
    assert torch.equal(step.dense["bias"], after.dense["bias"] - before.dense["bias"])
    assert int(step.dense["count"]) == int(advanced(before, step).dense["count"]) == 7


@settings(max_examples=30, derandomize=True)
@given(one=adapters(dtypes=(torch.float32,)))
def test_no_step_leads_nowhere(one):
    step = step_between(one, one)
    assert squared_length(step) == 0.0
    assert encode_adapter(advanced(one, step)) == encode_adapter(fold_scaling(one))


def test_a_step_leads_back_to_where_it_was_taken_to():
    before, after = adapter(1), adapter(2)
    there = advanced(before, step_between(before, after))
    for key, tensor in to_state_dict(there).items():
        torch.testing.assert_close(tensor, to_state_dict(fold_scaling(after))[key])


def test_length_is_over_all_floating_numbers():
    zero = adapter(1)
    step = LoraAdapter({}, {"bias": torch.tensor([3.0, 4.0]), "count": torch.tensor(100)})
    assert squared_length(step) == 25.0
    assert squared_length(step_between(zero, zero)) == 0.0


def test_inputs_are_left_alone():
    before, after = adapter(1), adapter(2)
    kept = encode_adapter(before), encode_adapter(after)
    advanced(before, step_between(before, after))
    assert (encode_adapter(before), encode_adapter(after)) == kept


def test_adapters_of_other_shapes_have_no_step():
    assert not same_shape(adapter(1), adapter(1, rank=3))
    for one, other in [(adapter(1), adapter(1, rank=3)), (adapter(1), LoraAdapter({}, {"bias": normal((4,), 1)}))]:
        with pytest.raises(AdapterShapeError, match="step"):
            step_between(one, other)
