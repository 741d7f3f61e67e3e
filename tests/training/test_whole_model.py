"""The whole model trained: an adapter without pairs that PEFT holds, saves and loads, and a base that it replaces."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import read_adapter, write_adapter
from tasks.errors import AdapterFormatError, AdapterShapeError, ModelError
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules, initial_adapter, load_adapter, peft_config
from tasks.training.loop import train
from tasks.training.merging import merged
from tasks.training.models import BaseModel, BaseModelSpec, load_base, state_digest
from tasks.training.spec import TrainingSpec
from tasks.training.targets import trained_whole
from tests.strategies import normal
from tests.training.pico import KINDS, examples_of, save_gpt2

WHOLE = LoraSpec(whole_model=True)
RENAMED = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT's own doing


def moved(base: BaseModel, seed: int = 1) -> LoraAdapter:
    """Every tensor of the model, at some distance from where it was."""
    dense = initial_adapter(base, WHOLE, {}, seed=0).dense
    return LoraAdapter({}, {n: t + normal(t.shape, seed + i, scale=0.1) for i, (n, t) in enumerate(dense.items())})


def worn(base: BaseModel, adapter: LoraAdapter) -> nn.Module:
    model = adapt(base, WHOLE, {}, seed=0)
    load_adapter(model, adapter)
    return model.eval()


def logits(network: nn.Module, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return network(**examples_of(kind).batch(np.arange(4))).logits


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_an_adapter_of_the_whole_model_is_its_tensors_and_nothing_else(bases, kind):
    base = bases[kind]
    adapter, state = initial_adapter(base, WHOLE, {}, seed=0), base.network.state_dict()
    assert (adapter.pairs, adapted_modules(base, WHOLE)) == ({}, {})
    assert adapter.dense.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.dense.items())
    assert sum(tensor.numel() for tensor in adapter.dense.values()) == base.num_parameters


@pytest.mark.filterwarnings(RENAMED)
def test_peft_loads_the_folder_into_the_plain_base_and_gives_the_same_logits(bases, kind, tmp_path):
    base = bases[kind]
    adapter = moved(base)
    ours = logits(worn(base, adapter), kind)
    assert not torch.allclose(ours, logits(base.network, kind), atol=1e-3), "the change matters"
    write_adapter(tmp_path / "whole", adapter, peft_config(base, WHOLE, adapter))
    kept = read_adapter(tmp_path / "whole").adapter
    assert all(torch.equal(kept.dense[name], tensor) for name, tensor in adapter.dense.items())
    loaded = PeftModel.from_pretrained(load_base(base.spec).network, str(tmp_path / "whole")).eval()
    torch.testing.assert_close(logits(loaded, kind), ours, rtol=0, atol=0)
    merged_in = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged_in, kind), ours, rtol=0, atol=0)
    assert merged_in.state_dict().keys() == base.network.state_dict().keys()


def test_base_with_a_whole_model_in_it_computes_what_that_computes(bases, kind):
    base, adapter = bases[kind], moved(bases[kind])
    digest = state_digest(base.network)
    changed = merged(base, [moved(base, seed=90), adapter])
    torch.testing.assert_close(logits(changed.network, kind), logits(worn(base, adapter), kind), rtol=0, atol=0)
    assert all(not parameter.requires_grad for parameter in changed.network.parameters())
    assert changed.digest == base.digest
    assert state_digest(base.network) == digest, "the base itself is never written to"


def test_low_ranks_are_added_to_the_whole_model_that_came_before_them(bases):
    base, whole = bases["mlp"], moved(bases["mlp"])
    lora = LoraSpec()
    ranks = dict.fromkeys(adapted_modules(base, lora), 2)
    drawn = initial_adapter(base, lora, ranks, seed=0)
    update = LoraAdapter({p: type(q)(q.a, normal(q.b.shape, 5)) for p, q in drawn.pairs.items()})
    state = merged(base, [whole, update]).network.state_dict()
    for path, pair in update.pairs.items():
        expected = whole.dense[f"{path}.weight"].double() + pair.b.double() @ pair.a.double()
        torch.testing.assert_close(state[f"{path}.weight"], expected.float(), rtol=0, atol=1e-6)
    late = merged(base, [update, whole]).network.state_dict()
    assert all(torch.equal(late[name], tensor) for name, tensor in whole.dense.items()), "a whole model replaces all"


@pytest.mark.parametrize(
    ("dense", "problem"),
    [({"layers.9.weight": torch.zeros(2, 2)}, "a tensor of it"), ({"layers.0.bias": torch.zeros(3)}, r"shape \(24,\)")],
)
def test_a_whole_model_of_another_network_is_refused(bases, dense, problem):
    with pytest.raises(AdapterShapeError, match=problem):
        merged(bases["mlp"], [LoraAdapter({}, dense)])


def test_training_moves_every_tensor_and_leaves_the_base_alone(bases, kind):
    base, examples = bases[kind], examples_of(kind)
    digest = state_digest(base.network)
    model = adapt(base, WHOLE, {}, seed=0)
    spec = TrainingSpec(max_steps=2, batch_size=8, optimizer="sgd", learning_rate=0.1)
    train(model, examples, np.arange(24), spec, seed=0, method=LocalMethod(Occasion(0, 1)))
    after = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(parameter.grad is None for parameter in after.values())
    before = dict(initial_adapter(base, WHOLE, {}, seed=0).dense)
    changed = [n for n, t in before.items() if not torch.equal(t, _held(model, n))]
    assert len(changed) >= 0.8 * len(before), "but for what the loss does not reach"
    assert state_digest(base.network) == digest


def _held(model: PeftModel, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    found = [p for n, p in model.named_parameters() if "modules_to_save.default" in n and n.endswith(f".{leaf}")]
    named = {n.replace("modules_to_save.default.", ""): p for n, p in model.named_parameters()}
    assert found
    return named[f"base_model.model.{path}.{leaf}"]


def test_a_head_of_several_layers_is_saved_once(bases):
    """PEFT saves the module called classifier in any case; its layers must not be saved beside it."""
    base = bases["sequence_classification"]
    network = nn.ModuleDict({"body": nn.Linear(4, 4), "classifier": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))})
    headed = BaseModel(base.spec, network, None, "", 0)
    assert trained_whole(headed, WHOLE) == ["body", "classifier"]


def test_running_statistics_come_along():
    network = nn.ModuleDict({"norm": nn.BatchNorm1d(4), "head": nn.Linear(4, 2)})
    base = BaseModel(BaseModelSpec("mlp"), network, None, "", 0)
    adapter = initial_adapter(base, WHOLE, {}, seed=0)
    assert {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"} <= adapter.dense.keys()
    filled = {n: (t + 1 if n.startswith("norm.") else t) for n, t in adapter.dense.items()}
    changed = merged(base, [LoraAdapter({}, filled)]).network.state_dict()
    assert all(torch.equal(changed[name], tensor) for name, tensor in filled.items())


def test_tied_weights_are_refused(tmp_path):
    base = load_base(BaseModelSpec("causal_lm", location=str(save_gpt2(tmp_path))))
    with pytest.raises(ModelError, match=r"lm_head\.weight: is tied to transformer\.wte\.weight"):
        adapted_modules(base, WHOLE)


def test_tensors_outside_of_modules_are_refused():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with pytest.raises(ModelError, match="outside of all its modules"):
        adapted_modules(BaseModel(BaseModelSpec("mlp"), Bare(), None, "", 0), WHOLE)


def test_modules_that_peft_would_mistake_for_one_another_are_refused():
    network = nn.ModuleDict({"0": nn.Linear(2, 2), "deep": nn.Sequential(nn.Sequential(nn.Linear(2, 2)))})
    with pytest.raises(ModelError, match="PEFT cannot hold every tensor"):
        initial_adapter(BaseModel(BaseModelSpec("mlp"), network, None, "", 0), WHOLE, {}, seed=0)


def test_a_folder_of_nothing_is_still_refused(tmp_path):
    with pytest.raises(AdapterFormatError, match="no LoRA module"):
        write_adapter(tmp_path / "x", LoraAdapter({}, {"head.weight": torch.ones(2)}), {"modules_to_save": None})
