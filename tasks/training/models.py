"""Base models by kind: what they are (a spec that fits into JSON) and how they come into memory, frozen.

Small networks of our own are drawn from the spec's seed; published models come through transformers' Auto classes
from a hub id or a local folder, as safetensors only and without remote code. What LoRA adds is in `adaptation.py`;
how a pretrained model is read is in `pretrained.py`.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.errors import ModelError, UnknownNameError
from tasks.training.networks import Cnn, Mlp, draw_parameters
from tasks.training.pretrained import (
    Pretrained,
    load_causal_lm,
    load_image_classifier,
    load_sequence_classifier,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BaseModelSpec:
    """Which base model; every field fits into JSON.

    Args:
        kind: Name in `MODEL_KINDS`.
        location: Hub id or local folder; empty for kinds that are drawn here.
        revision: Branch, tag or commit on the hub; empty for the default branch.
        num_labels: Number of classes; 0 means as many as `label_names`. Not used by causal language models.
        label_names: Name of each class, in the order of their numbers.
        input_shape: (C, H, W) of one image, for "mlp" and "cnn".
        hidden_sizes: Widths of the hidden linear layers; "cnn" has one and uses the first.
        seed: Seed of the weights that no checkpoint brings: whole small networks, fresh heads.
        dtype: Name in `DTYPES`.
    """

    kind: str
    location: str = ""
    revision: str = ""
    num_labels: int = 0
    label_names: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = ()
    hidden_sizes: tuple[int, ...] = (200, 200)
    seed: int = 0
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base model in memory, frozen and in evaluation mode; never written to by those who adapt it.

    Args:
        spec: What was asked for.
        network: The model.
        processor: Tokenizer or image processor; None for the kinds of our own.
        digest: SHA-256 over names, dtypes, shapes and bytes of all tensors; the same on every machine.
        num_parameters: How many numbers full fine-tuning would send.
        fresh_modules: Paths of modules that the checkpoint did not bring and the seed filled.
    """

    spec: BaseModelSpec
    network: nn.Module
    processor: Any
    digest: str
    num_parameters: int
    fresh_modules: tuple[str, ...] = ()


def load_base(spec: BaseModelSpec) -> BaseModel:
    """Bring a base model into memory on the CPU, frozen, in evaluation mode.

    Args:
        spec: Which model.

    Returns:
        The model with its processor and its digest.

    Raises:
        UnknownNameError: No such kind or dtype.
        ModelError: The location holds no such model, or sizes are missing or contradict each other.
    """
    if spec.kind not in MODEL_KINDS:
        raise UnknownNameError("model kind", spec.kind, MODEL_KINDS)
    if spec.dtype not in DTYPES:
        raise UnknownNameError("model dtype", spec.dtype, DTYPES)
    loaded = MODEL_KINDS[spec.kind](spec)
    network = loaded.network.requires_grad_(requires_grad=False).eval()
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    return BaseModel(spec, network, loaded.processor, state_digest(network), num_parameters, loaded.fresh_modules)


def state_digest(network: nn.Module) -> str:
    """Hash a model's tensors: sorted names, dtypes, shapes and bytes.

    Args:
        network: Any model, on any device.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        # Bytes through a flat uint8 view: NumPy knows no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy())
    return digest.hexdigest()


def label_names(spec: BaseModelSpec) -> tuple[str, ...]:
    """Return the name of each class, numbered names where the spec gives none.

    Args:
        spec: Which model.

    Returns:
        One name per class, at least two.

    Raises:
        ModelError: Fewer than two classes, or names and number disagree.
    """
    count = spec.num_labels or len(spec.label_names)
    if count < 2:
        raise ModelError(
            "model.num_labels",
            "a classifier needs at least two classes",
            got=count,
            remedy="set it, or give model.label_names",
        )
    if spec.label_names and len(spec.label_names) != count:
        raise ModelError(
            "model.num_labels", "differs from the number of model.label_names", got=count,
            expected=len(spec.label_names), remedy="set one of the two, or make them agree",
        )  # fmt: skip
    return spec.label_names or tuple(f"label {number}" for number in range(count))


def _mlp(spec: BaseModelSpec) -> Pretrained:
    shape, classes = _image_shape(spec), len(label_names(spec))
    return _drawn(lambda: Mlp(shape, spec.hidden_sizes, classes), spec)


def _cnn(spec: BaseModelSpec) -> Pretrained:
    shape, classes = _image_shape(spec), len(label_names(spec))
    if min(shape[1:]) < 4:
        raise ModelError("model.input_shape", "too small for two 2x2 poolings", got=shape,
                         expected="height and width of at least 4", remedy="use kind mlp")  # fmt: skip
    if not spec.hidden_sizes:
        raise ModelError("model.hidden_sizes", "cnn needs the width of its hidden layer", remedy="e.g. [200]")
    return _drawn(lambda: Cnn(shape, spec.hidden_sizes[0], classes), spec)


def _image_shape(spec: BaseModelSpec) -> tuple[int, ...]:
    if len(spec.input_shape) != 3 or math.prod(spec.input_shape) < 1:
        raise ModelError(
            "model.input_shape", f"kind {spec.kind} needs the shape of one image",
            got=spec.input_shape, expected="channels, height, width, e.g. [1, 28, 28]",
        )  # fmt: skip
    return spec.input_shape


def _drawn(build: Callable[[], nn.Module], spec: BaseModelSpec) -> Pretrained:
    # Built without memory first: torch's layers would draw their own weights from the process's generator.
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    draw_parameters(network, spec.seed)
    return Pretrained(network.to(DTYPES[spec.dtype]))


def _sequence_classification(spec: BaseModelSpec) -> Pretrained:
    return load_sequence_classifier(
        spec.location, revision=spec.revision, labels=label_names(spec), dtype=DTYPES[spec.dtype], seed=spec.seed
    )


def _image_classification(spec: BaseModelSpec) -> Pretrained:
    return load_image_classifier(
        spec.location, revision=spec.revision, labels=label_names(spec), dtype=DTYPES[spec.dtype], seed=spec.seed
    )


def _causal_lm(spec: BaseModelSpec) -> Pretrained:
    return load_causal_lm(spec.location, revision=spec.revision, dtype=DTYPES[spec.dtype])


MODEL_KINDS: dict[str, Callable[[BaseModelSpec], Pretrained]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "sequence_classification": _sequence_classification,
    "image_classification": _image_classification,
    "causal_lm": _causal_lm,
}
