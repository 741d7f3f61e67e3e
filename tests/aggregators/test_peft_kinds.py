"""From PEFT to PEFT: adapters that PEFT saved, aggregated by every method, mean in PEFT what they mean here.

Every layer kind, no layer square, ranks and alphas of their own per module, one client with rsLoRA.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.adapters.core import core_of, with_core
from tasks.adapters.lora import LoraPair
from tasks.adapters.peft_files import PeftFolder, read_adapter, write_adapter
from tasks.adapters.products import dense_product
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.table import AGGREGATORS, Aggregator
from tasks.errors import UnsupportedAdapterError
from tasks.local_methods.pairs import lora_pairs
from tests.strategies import normal

pytestmark = [
    # Two kinds of layer in one model: PEFT says that the switch is for one of them only, which is what is tested.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to.*"),
    pytest.mark.filterwarnings("ignore:.*rank_pattern. or .alpha_pattern. at the same time as .use_rslora.*"),
]

LAYERS = ["tokens", "linear", "turned", "conv1", "conv3"]
MIXED = (
    {"r": 2, "lora_alpha": 4, "rank_pattern": {"conv3": 1, "tokens": 3}},
    {"r": 4, "lora_alpha": 6, "rank_pattern": {"linear": 3}, "use_rslora": True},
    {"r": 3, "lora_alpha": 3, "rank_pattern": {"conv1": 5, "turned": 1}, "alpha_pattern": {"linear": 8}},
)
EQUAL = (
    {"r": 3, "lora_alpha": 4, "rank_pattern": {"conv3": 2}},
    {"r": 3, "lora_alpha": 6, "rank_pattern": {"conv3": 2}, "use_rslora": True},
    {"r": 3, "lora_alpha": 3, "rank_pattern": {"conv3": 2}, "alpha_pattern": {"linear": 8}},
)
PREVIOUS = {"r": 3, "lora_alpha": 5, "rank_pattern": {"conv3": 2}}
WEIGHTS = [3.0, 1.0, 2.0]


class Zoo(nn.Module):
    """One layer of every kind."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 5)
        self.turned = Conv1D(7, 5)
        self.conv1 = nn.Conv2d(7, 3, 1)
        self.conv3 = nn.Conv2d(3, 4, 3)


@dataclass(frozen=True)
class Saved:
    """What PEFT wrote for one client, and what it says that this client's update is."""

    folder: PeftFolder
    deltas: dict[str, torch.Tensor]


def trained(words: dict[str, Any], seed: int, *, kind: str) -> PeftModel:
    """Adapt the zoo; with a frozen `a`, clients of any rank have the first rows of one, and with cores B0 as well."""
    model = get_peft_model(Zoo(), LoraConfig(target_modules=LAYERS, fan_in_fan_out=True, **words))
    lora = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for i, (name, parameter) in enumerate(lora):
            is_a = "lora_A" in name or "lora_embedding_A" in name
            is_shared = is_a and kind in {"frozen", "cores"}
            entries = normal((8, *parameter.shape[1:]), i if is_shared else 100 * seed + i, scale=0.3)
            parameter.copy_(entries[: len(parameter)])
        for pair in lora_pairs(model) if kind == "cores" else ():
            plain = LoraPair(pair.a.flatten(1), pair.b.flatten(1))
            pair.b.copy_(with_core(plain, core_of(plain)).b.reshape(pair.b.shape))
    return model


def lora_layers(model: PeftModel) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def deltas(model: PeftModel) -> dict[str, torch.Tensor]:
    """PEFT's own update per module, turned to [O, I]."""
    found = {}
    for path, layer in lora_layers(model).items():
        delta = layer.get_delta_weight("default").detach().double()
        is_turned = isinstance(layer.get_base_layer(), nn.Embedding | Conv1D)
        found[path] = delta.T if is_turned else delta.flatten(1)
    return found


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Saved]]:
    """Three clients and a previous adapter, saved by PEFT, for every kind of method."""
    made = {}
    for name, clients in (("mixed", MIXED), ("frozen", MIXED), ("cores", MIXED), ("equal", EQUAL)):
        made[name] = []
        for seed, words in enumerate((*clients, PREVIOUS), start=1):
            model, folder = trained(words, seed, kind=name), tmp_path_factory.mktemp(name)
            model.save_pretrained(str(folder), save_embedding_layers=False)
            made[name].append(Saved(read_adapter(folder), deltas(model)))
    return made


def suited(row: Aggregator, cohorts: dict[str, list[Saved]]) -> list[Saved]:
    frozen = {"b": "frozen", "core": "cores"}
    return cohorts[frozen.get(row.sends, "mixed" if row.mixed_ranks else "equal")]


def loaded(folder: Path) -> PeftModel:
    # A missing or an unexpected key is a warning in PEFT, so an error here.
    return PeftModel.from_pretrained(Zoo(), str(folder))


def test_clients_are_read_with_peft_s_own_updates(cohorts: dict[str, list[Saved]]):
    for saved in (one for cohort in cohorts.values() for one in cohort):
        assert sorted(saved.folder.adapter.pairs) == sorted(LAYERS)
        for path, delta in saved.deltas.items():
            assert delta.shape[0] != delta.shape[1]
            torch.testing.assert_close(dense_product(saved.folder.adapter.pairs[path]), delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregate_means_in_peft_what_it_means_here(name: str, cohorts: dict[str, list[Saved]], tmp_path: Path):
    *clients, previous = (saved.folder for saved in suited(AGGREGATORS[name], cohorts))
    result = aggregate(name, [c.adapter for c in clients], WEIGHTS, previous=previous.adapter)
    write_adapter(tmp_path / "ours", result, clients[0].config)
    found = deltas(loaded(tmp_path / "ours"))
    assert sorted(found) == sorted(LAYERS)
    for path, delta in found.items():
        assert float(delta.abs().max()) > 0.01
        torch.testing.assert_close(delta, dense_product(result.pairs[path]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, row in AGGREGATORS.items() if row.exact_product])
def test_exact_aggregate_is_the_mean_of_peft_s_own_updates(name: str, cohorts: dict[str, list[Saved]], tmp_path: Path):
    *clients, _ = suited(AGGREGATORS[name], cohorts)
    result = aggregate(name, [c.folder.adapter for c in clients], WEIGHTS)
    write_adapter(tmp_path / "ours", result, clients[0].folder.config)
    for path, delta in deltas(loaded(tmp_path / "ours")).items():
        mean = sum(w * c.deltas[path] for w, c in zip(WEIGHTS, clients, strict=True)) / sum(WEIGHTS)
        torch.testing.assert_close(delta, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "words", "reason"),
    [
        (nn.Linear(6, 5), {"use_dora": True}, "use_dora is set: DoRA's magnitudes make the update depend on the base"),
        (nn.Linear(6, 5), {"lora_bias": True}, "lora_bias is set: a bias inside B is no part of the product"),
        (nn.Conv2d(4, 6, 3, groups=2), {}, "is a grouped convolution, whose update is not one product"),
    ],
    ids=["DoRA", "lora_bias", "grouped convolution"],
)
@pytest.mark.filterwarnings("ignore:.*groups > 1.*", "ignore:.*lora_B.bias.*")
def test_folder_without_a_correct_aggregate_is_refused_with_the_reason(
    layer: nn.Module, words: dict[str, Any], reason: str, tmp_path: Path
):
    model = get_peft_model(nn.Sequential(layer), LoraConfig(r=2, target_modules=["0"], **words))
    model.save_pretrained(str(tmp_path))
    with pytest.raises(UnsupportedAdapterError, match=reason) as caught:
        read_adapter(tmp_path)
    assert caught.value.remedy
