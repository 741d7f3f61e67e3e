"""Which modules LoRA adapts and which are trained whole, resolved on the model itself.

Here: the user's wishes, checked against what the model has. Building the adapted model is in `adaptation.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_DEFAULTS
from torch import nn

from tasks.errors import ModelError
from tasks.training.models import BaseModel

Bias = Literal["none", "all", "lora_only"]

ALL_LINEAR = "all-linear"
OWN_KINDS = ("mlp", "cnn")
CLASSIFIER_KINDS = ("sequence_classification", "image_classification")
# The names that PEFT itself takes for the head of a classifier.
HEAD_NAMES = ("classifier", "score")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ADAPTABLE = (nn.Linear, *_CONVOLUTIONS, nn.Embedding)


@dataclass(frozen=True)
class LoraSpec:
    """How a base model is adapted; ranks are given per client.

    Args:
        target_modules: Names or paths of modules to adapt; ("all-linear",) for every linear layer. Empty: every linear
            and convolutional layer of our own networks; for transformers PEFT's own choice by architecture, every
            linear layer where it has none (vision models).
        alpha: LoRA's alpha; the update is scaled by alpha / rank. 0: alpha follows the rank, scaling 1.
        use_rslora: Scale by alpha / sqrt(rank) instead; needs an alpha.
        dropout: Probability that an input of an adapted module is dropped in training.
        bias: Biases to train whole: "none", "all", or those of adapted modules ("lora_only").
        modules_to_save: Names or paths of modules to train whole. A transformers classifier's head and whatever else
            its checkpoint did not bring are trained whole in any case.
        whole_model: Train every tensor of the model and adapt no module; nothing else here counts then.
    """

    target_modules: tuple[str, ...] = ()
    alpha: float = 0.0
    use_rslora: bool = False
    dropout: float = 0.0
    bias: Bias = "none"
    modules_to_save: tuple[str, ...] = ()
    whole_model: bool = False


def named_targets(base: BaseModel, lora: LoraSpec) -> list[str] | str | None:
    """Say what to adapt in the form PEFT takes.

    Args:
        base: The base model.
        lora: The user's wishes.

    Returns:
        Names or paths; PEFT's shorthand for every linear layer; or None for PEFT's own choice by architecture.

    Raises:
        ModelError: A name that no module has, or one of a grouped convolution.
    """
    wanted, own = lora.target_modules, base.spec.kind in OWN_KINDS
    if own and (not wanted or wanted == (ALL_LINEAR,)):
        kinds = (nn.Linear,) if wanted else (nn.Linear, nn.Conv2d)
        return [path for path, module in base.network.named_modules() if isinstance(module, kinds)]
    if not wanted and getattr(base.network.config, "model_type", "") in LORA_DEFAULTS:
        return None
    if wanted in ((), (ALL_LINEAR,)):
        return ALL_LINEAR
    for name in wanted:
        if not _matches(base.network, name):
            raise ModelError(
                "lora.target_modules", "no module has this name", got=name,
                expected="one of " + ", ".join(adaptable_names(base.network)),
                remedy=f"or leave it empty for the default, or use {ALL_LINEAR}",
            )  # fmt: skip
    return list(wanted)


def check_no_groups(network: nn.Module, targets: Iterable[str]) -> None:
    """Refuse grouped convolutions.

    Args:
        network: The base model.
        targets: Names or paths of modules to adapt.

    Raises:
        ModelError: A target is a convolution with more than one group.
    """
    for path in (path for name in targets for path in _matches(network, name)):
        module = network.get_submodule(path)
        if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
            raise ModelError(
                f"lora.target_modules, module {path}",
                "is a grouped convolution, whose update is not one product of its factors",
                got=f"{module.groups} groups", remedy="leave it out, or train it whole by lora.modules_to_save",
            )  # fmt: skip


def check_ranks(network: nn.Module, ranks: Mapping[str, int]) -> None:
    """Refuse ranks that no adapter can have.

    Args:
        network: The base model.
        ranks: Module path -> rank.

    Raises:
        ModelError: No module, a path the model does not have, or a rank below 1.
    """
    if not ranks:
        raise ModelError("ranks", "no module is to be adapted", remedy="give one module a rank of 1 at least")
    known = {path for path, _ in network.named_modules()}
    for path, rank in ranks.items():
        if path not in known:
            raise ModelError(f"module {path}", "is not in the base model", remedy="take paths from adapted_modules")
        if rank < 1:
            raise ModelError(
                f"module {path}", "cannot be adapted at this rank", got=rank, expected="at least 1",
                remedy="leave the module out to not adapt it",
            )  # fmt: skip


def trained_whole(base: BaseModel, lora: LoraSpec) -> list[str]:
    """Return the paths of the modules that are trained whole: what was asked for, and a classifier's head.

    Args:
        base: The base model.
        lora: The user's wishes.

    Returns:
        Sorted paths, none inside another. For a whole model they hold every tensor of it.

    Raises:
        ModelError: A name that no module has, a classifier without a head of a known name, or a whole model that cannot
            be trained as one.
    """
    paths = _owners(base.network) if lora.whole_model else set(base.fresh_modules)
    for name in () if lora.whole_model else lora.modules_to_save:
        found = _matches(base.network, name)
        if not found:
            raise ModelError(
                "lora.modules_to_save", "no module has this name", got=name,
                expected="one of " + ", ".join(name for name, _ in base.network.named_children()),
                remedy="or a path inside one of them",
            )  # fmt: skip
        paths.update(found)
    if base.spec.kind in CLASSIFIER_KINDS:
        paths.update(path for name in HEAD_NAMES for path in _matches(base.network, name))
        if not paths:
            raise ModelError(
                "lora.modules_to_save", "the classifier's head has none of the usual names and would never train",
                expected="one of " + ", ".join(name for name, _ in base.network.named_children()),
                remedy="name the head",
            )  # fmt: skip
    return [path for path in sorted(paths) if not any(path.startswith(f"{outer}.") for outer in paths)]


def adaptable_names(network: nn.Module) -> list[str]:
    """List the names by which modules can be adapted: the last part of each path, all of it where that is a number.

    Args:
        network: The base model.

    Returns:
        Sorted names.
    """
    paths = [path for path, module in network.named_modules() if is_adaptable(module)]
    return sorted({path if _last(path).isdigit() else _last(path) for path in paths})


def short_names(network: nn.Module, paths: Iterable[str]) -> list[str]:
    """Name modules by the last part of their paths, if that names exactly these and no others.

    Args:
        network: The base model.
        paths: Module paths.

    Returns:
        Sorted short names, or the sorted paths themselves.
    """
    wanted = set(paths)
    names = {_last(path) for path in wanted}
    named = {path for path, _ in network.named_modules() if _last(path) in names}
    return sorted(names if named == wanted and not any(name.isdigit() for name in names) else wanted)


def is_adaptable(module: nn.Module) -> bool:
    """Tell whether PEFT's LoRA knows this layer."""
    return isinstance(module, _ADAPTABLE) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Tell whether a layer keeps its weight as [inputs, outputs], as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _owners(network: nn.Module) -> set[str]:
    """Return the paths of all modules that hold tensors of their own."""
    names: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(parameter), name)) != name:
            raise ModelError(
                f"lora.whole_model, tensor {name}", f"is tied to {other}: trained apart, the two would drift apart",
                remedy="use low ranks, or a checkpoint whose head is not tied to its embeddings",
            )  # fmt: skip
    paths = {name.rpartition(".")[0] for name in network.state_dict()}
    if "" in paths:
        raise ModelError(
            "lora.whole_model", "the model holds tensors outside of all its modules, which PEFT cannot save",
            remedy="use low ranks, or another model",
        )  # fmt: skip
    return paths


def _matches(network: nn.Module, name: str) -> list[str]:
    return [path for path, _ in network.named_modules() if path == name or path.endswith(f".{name}")]


def _last(path: str) -> str:
    return path.rpartition(".")[2]
