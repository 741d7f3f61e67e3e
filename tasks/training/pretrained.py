"""Published models through transformers' Auto classes: from a hub id or a folder, safetensors only, no remote code.

Weights that a checkpoint does not bring (a classifier's head) are drawn from a seed here, so that every site holds
the same base model. Which model a run uses is decided in `models.py`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from tasks.errors import ModelError
from tasks.training.networks import draw_uniform
from tasks.training.randomness import seeded

# What transformers, huggingface_hub and safetensors raise for a location that does not hold what was asked for.
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A network as it came into memory.

    Args:
        network: The model.
        processor: Its tokenizer or image processor, if it has one.
        fresh_modules: Paths of modules that hold weights no checkpoint brought, outermost only.
    """

    network: nn.Module
    processor: Any = None
    fresh_modules: tuple[str, ...] = ()


def load_sequence_classifier(
    location: str, *, revision: str, labels: Sequence[str], dtype: torch.dtype, seed: int
) -> Pretrained:
    """Load a text classifier and its tokenizer.

    Args:
        location: Hub id or local folder.
        revision: Branch, tag or commit on the hub; empty for the default.
        labels: Name of each class.
        dtype: Of the weights.
        seed: Of the weights that the checkpoint does not bring.

    Returns:
        Model, tokenizer (with a pad token) and the fresh modules.

    Raises:
        ModelError: The location holds no such model.
    """
    from transformers import AutoModelForSequenceClassification

    network, fresh = _load_classifier(
        AutoModelForSequenceClassification, location, revision=revision, labels=labels, dtype=dtype, seed=seed
    )
    return Pretrained(network, _tokenizer(location, revision, network), fresh)


def load_image_classifier(
    location: str, *, revision: str, labels: Sequence[str], dtype: torch.dtype, seed: int
) -> Pretrained:
    """Load an image classifier and its image processor.

    Args:
        location: Hub id or local folder.
        revision: Branch, tag or commit on the hub; empty for the default.
        labels: Name of each class.
        dtype: Of the weights.
        seed: Of the weights that the checkpoint does not bring.

    Returns:
        Model, image processor and the fresh modules.

    Raises:
        ModelError: The location holds no such model.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    network, fresh = _load_classifier(
        AutoModelForImageClassification, location, revision=revision, labels=labels, dtype=dtype, seed=seed
    )
    return Pretrained(network, _from_pretrained(AutoImageProcessor, location, revision=revision), fresh)


def load_causal_lm(location: str, *, revision: str, dtype: torch.dtype) -> Pretrained:
    """Load a causal language model and its tokenizer.

    Args:
        location: Hub id or local folder.
        revision: Branch, tag or commit on the hub; empty for the default.
        dtype: Of the weights.

    Returns:
        Model and tokenizer (with a pad token).

    Raises:
        ModelError: The location holds no such model, or its checkpoint lacks weights.
    """
    from transformers import AutoModelForCausalLM

    with seeded(0):
        network, info = _from_pretrained(
            AutoModelForCausalLM, location, revision=revision, dtype=dtype, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    if info["missing_keys"]:
        raise _incomplete(location, info["missing_keys"], "a causal language model")
    return Pretrained(network, _tokenizer(location, revision, network))


def _load_classifier(
    auto_class: Any, location: str, *, revision: str, labels: Sequence[str], dtype: torch.dtype, seed: int
) -> tuple[nn.Module, tuple[str, ...]]:
    # The library draws fresh heads from the global generator, differently on other machines: its draws are undone.
    with seeded(seed):
        network, info = _from_pretrained(
            auto_class, location, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True,
            id2label=dict(enumerate(labels)), label2id={name: number for number, name in enumerate(labels)},
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    resized = {name for name, *_ in info["mismatched_keys"]}
    fresh = {*info["missing_keys"], *resized}
    body = f"{network.base_model_prefix}."
    lost = {name for name in fresh if name.startswith(body) and (name in resized or ".pooler." not in name)}
    if lost:
        raise _incomplete(location, lost, "a model of this architecture")
    _draw_fresh(network, fresh, seed)
    return network, _outermost(name.rpartition(".")[0] for name in fresh)


def _draw_fresh(network: nn.Module, names: Iterable[str], seed: int) -> None:
    # Uniform with the standard deviation that the model's own normal draw would have; biases stay as the library set
    # them, which is to constants.
    rng = np.random.default_rng(seed)
    state = network.state_dict()
    deviation = getattr(network.config, "initializer_range", None) or 0.02
    for name in sorted(names):
        if state[name].ndim >= 2:
            draw_uniform(state[name], deviation * math.sqrt(3), rng)


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{outer}.") for outer in kept):
            kept.append(path)
    return tuple(kept)


def _tokenizer(location: str, revision: str, network: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, location, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            "model.location", "its tokenizer has no token to pad a batch with", got=location,
            remedy="set pad_token, eos_token or unk_token in its tokenizer_config.json",
        )  # fmt: skip
    if network.config.pad_token_id is None:
        # Decoders that classify look for the last token that is not padding.
        network.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _from_pretrained(auto_class: Any, location: str, *, revision: str, **options: Any) -> Any:
    local = Path(location).expanduser()
    if not location or (not local.exists() and (location[0] in "./~" or location.count("/") > 1)):
        raise ModelError("model.location", "no such folder", got=location or "nothing",
                         remedy="give a folder in transformers' layout, or a hub id such as owner/name")  # fmt: skip
    source = str(local) if local.exists() else location
    try:
        return auto_class.from_pretrained(
            source,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=local.exists(),
            **options,
        )
    except LOADING_ERRORS as error:
        raise ModelError(
            "model.location", f"transformers' {auto_class.__name__} cannot load it", got=location,
            expected=f"what it can read, but: {_first_line(error)}",
            remedy="check that it is a model of this kind with *.safetensors weights; for a hub id, that it exists "
            "and that this machine is online, or download it and give the folder",
        ) from error  # fmt: skip


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _incomplete(location: str, names: Iterable[str], what: str) -> ModelError:
    first, *others = sorted(names)
    return ModelError(
        "model.location", f"its checkpoint lacks weights of {what}", got=location,
        expected=f"{first}" + (f" and {len(others)} more" if others else ""),
        remedy="choose a checkpoint that holds them, or another model.kind",
    )  # fmt: skip
