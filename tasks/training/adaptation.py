"""A base model with LoRA on it, by PEFT: which modules, at which ranks, and adapters going in and out of it.

Adapters here are values with their scaling folded into `b`; every model has scalings of its own, and this module is
where the one becomes the other. The base model's frozen tensors are shared by all models adapted from it, so many
clients in one process hold it once. What to adapt is decided in `targets.py`, PEFT's key names are known to
`tasks.adapters.peft_files`.

Legend of dimensions: R rank, I inputs (flattened), O outputs.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES

from tasks.adapters.lora import LoraAdapter, fold_scaling, unfold_scaling
from tasks.adapters.peft_files import from_state_dict, to_state_dict
from tasks.errors import AdapterShapeError, ModelError
from tasks.training.models import BaseModel
from tasks.training.peft_words import peft_config
from tasks.training.skeleton import skeleton
from tasks.training.targets import (
    LoraSpec,
    check_no_groups,
    check_ranks,
    named_targets,
    trained_whole,
)

__all__ = [
    "LoraSpec",
    "adapt",
    "adapted_modules",
    "extract_adapter",
    "initial_adapter",
    "load_adapter",
    "peft_config",
    "train_only",
]

ADAPTER_NAME = "default"


def adapted_modules(base: BaseModel, lora: LoraSpec) -> dict[str, tuple[int, int]]:
    """Resolve, with PEFT's own matching, which modules a spec adapts; a module's full rank is the smaller size.

    Args:
        base: The base model.
        lora: What to adapt.

    Returns:
        Module path -> (O, I); none where the whole model is trained.

    Raises:
        ModelError: A name that no module has, nothing to adapt, a grouped convolution, or a whole model that cannot be
            trained as one.
    """
    if lora.whole_model:
        trained_whole(base, lora)  # refuses what cannot be trained as a whole
        return {}
    targets = named_targets(base, lora)
    if isinstance(targets, list):
        check_no_groups(base.network, targets)
    # A probe of rank 1: what PEFT would adapt is known for certain only from what it does adapt.
    probe = skeleton(base, lora, LoraConfig(r=1, target_modules=targets), seed=0)
    pairs = _read(probe).pairs
    return {path: (pair.b.shape[0], pair.a.shape[1]) for path, pair in pairs.items()}


def adapt(base: BaseModel, lora: LoraSpec, ranks: Mapping[str, int], *, seed: int) -> PeftModel:
    """Build a model to train: LoRA at these ranks, on frozen weights that stay the base model's own.

    Args:
        base: The base model; its frozen tensors are shared, never written to.
        lora: How to adapt it.
        ranks: Module path -> rank, at least 1; modules without an entry are left as they are. None at all where the
            whole model is trained.
        seed: Seed of PEFT's own initialisation.

    Returns:
        A PEFT model whose product is zero until it is trained or loaded. A whole model has trained copies of all its
        tensors, the base model's own beside them.

    Raises:
        ModelError: A rank below 1, no module, a path the model does not have, a grouped convolution, or a whole model
            that PEFT cannot hold.
    """
    if lora.whole_model:
        return _whole(base, lora, seed)
    check_ranks(base.network, ranks)
    check_no_groups(base.network, ranks)
    largest = max(ranks.values())
    # PEFT matches `(.*\.)?(KEY)$`: the caret keeps "layers.1" from also naming "x.layers.1".
    pattern = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != largest}
    config = LoraConfig(
        r=largest,
        rank_pattern=pattern,
        target_modules="|".join(map(re.escape, ranks)),
        lora_dropout=lora.dropout,
    )
    return skeleton(base, lora, config, seed=seed)


def _whole(base: BaseModel, lora: LoraSpec, seed: int) -> PeftModel:
    model = skeleton(base, lora, LoraConfig(r=1, target_modules=DUMMY_TARGET_MODULES), seed=seed)
    # PEFT finds modules by the ends of their paths, and could take one for another.
    named = model.get_base_model().named_modules()
    got = {path for path, module in named if isinstance(module, ModulesToSaveWrapper)}
    expected = set(trained_whole(base, lora))
    if got != expected:
        raise ModelError(
            "lora.whole_model", "PEFT cannot hold every tensor of this model once",
            got=", ".join(sorted(got ^ expected)[:5]), remedy="use low ranks",
        )  # fmt: skip
    return model


def initial_adapter(base: BaseModel, lora: LoraSpec, ranks: Mapping[str, int], *, seed: int) -> LoraAdapter:
    """Draw the adapter of round 0, whose product is zero.

    Args:
        base: The base model.
        lora: How to adapt it.
        ranks: Module path -> rank.
        seed: Seed of the random factors.

    Returns:
        Folded adapter: `a` random and `b` zero (for embeddings the other way round, as PEFT has it), and the dense
        tensors as the base model has them; of a whole model only those.

    Raises:
        ModelError: As `adapt`.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685, section 4.1;
        the distribution of `a` is PEFT's default (Kaiming-uniform), not the paper's Gaussian.
    """
    return extract_adapter(adapt(base, lora, ranks, seed=seed))


def load_adapter(model: PeftModel, adapter: LoraAdapter) -> None:
    """Put an adapter into a model, expressed under the scalings of the model's layers.

    Args:
        model: A model from `adapt`.
        adapter: Exactly the model's modules, ranks and dense tensors; any scaling.

    Raises:
        AdapterShapeError: A tensor is missing, unknown, or of another shape; the model is untouched then.
    """
    tensors = _trained_tensors(model)
    scalings = _scalings(model)
    expected = {path: scalings.get(path, 1.0) for path in adapter.pairs}
    arriving = to_state_dict(unfold_scaling(adapter, expected))
    for key in sorted(tensors.keys() | arriving.keys()):
        _check_tensor(key, tensors.get(key), arriving.get(key))
    with torch.no_grad():
        for key, tensor in arriving.items():
            tensors[key].copy_(tensor)


def train_only(model: PeftModel, factor: Literal["a", "b"]) -> None:
    """Freeze one factor of every pair, so that only the other one is trained.

    Args:
        model: A model from `adapt`.
        factor: The factor that goes on training; dense tensors train as before.
    """
    frozen = ("lora_A", "lora_embedding_A") if factor == "b" else ("lora_B", "lora_embedding_B")
    for module in model.get_base_model().modules():
        if isinstance(module, LoraLayer):
            for name in frozen:
                for parameter in getattr(module, name).parameters():
                    parameter.requires_grad_(requires_grad=False)


def extract_adapter(model: PeftModel) -> LoraAdapter:
    """Take the adapter out of a model.

    Args:
        model: A model from `adapt`.

    Returns:
        Folded adapter of copies on the CPU, floating tensors in float32; training on does not change it.
    """
    adapter = fold_scaling(_read(model))
    pairs = {path: replace(pair, a=pair.a.float(), b=pair.b.float()) for path, pair in adapter.pairs.items()}
    dense = {name: t.float() if t.is_floating_point() else t for name, t in adapter.dense.items()}
    return LoraAdapter(pairs, dense)


def _read(model: PeftModel) -> LoraAdapter:
    return from_state_dict(_trained_tensors(model), _scalings(model))


def _scalings(model: PeftModel) -> dict[str, float]:
    modules = model.get_base_model().named_modules()
    return {path: m.scaling[ADAPTER_NAME] for path, m in modules if isinstance(m, LoraLayer)}


def _trained_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    # The model's own memory, under the keys of PEFT's files. With trained biases PEFT also lists those inside its
    # wrappers of whole-trained modules, which it lists once more under their own names.
    wrapped = tuple(f"{path}." for path, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper))
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    inner = ("original_module.", "modules_to_save.")
    return {
        key: tensor
        for key, tensor in state.items()
        if not any(key.startswith(path) and key[len(path) :].startswith(inner) for path in wrapped)
    }


def _check_tensor(key: str, held: torch.Tensor | None, arriving: torch.Tensor | None) -> None:
    if held is not None and arriving is not None and held.shape == arriving.shape:
        return
    raise AdapterShapeError(
        f"tensor {key}",
        "does not fit the adapted model",
        got="nothing" if arriving is None else f"shape {tuple(arriving.shape)}",
        expected="nothing" if held is None else f"shape {tuple(held.shape)}",
        remedy="adapt the model at the adapter's ranks, bias and modules_to_save",
    )
