"""PEFT's names for tensors, as they stand in its files, and the adapter they spell.

The only place that knows PEFT's key names; everyone else imports these functions from `peft_files`. Dense tensors keep
their PEFT name without the prefix: the bias of an adapted layer is `layers.0.base_layer.bias`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair
from tasks.errors import AdapterFormatError, AdapterShapeError, UnsupportedAdapterError

_KEY_PREFIX = "base_model.model."
_LAYER = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
_FACTOR_KEY = re.compile(r"(?P<path>.+)\.(?P<factor>lora_[AB]\.weight|lora_embedding_[AB])")
_FOREIGN_KEY = re.compile(r".+\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|lora_E)(\..+)?")


def to_state_dict(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    """Name an adapter's tensors as PEFT does in its files.

    Args:
        adapter: Any adapter; scalings are not applied, a state dict has no place for them.

    Returns:
        PEFT key -> tensor in PEFT's shape, sharing memory with the adapter.
    """
    state = {}
    for path, pair in adapter.pairs.items():
        name_a, name_b = _EMBEDDING if pair.form.kind == "embedding" else _LAYER
        state[f"{_KEY_PREFIX}{path}.{name_a}"] = pair.a.reshape(pair.rank, *pair.form.a_tail)
        state[f"{_KEY_PREFIX}{path}.{name_b}"] = pair.b.reshape(*pair.b.shape, *pair.form.b_tail)
    return state | {_KEY_PREFIX + name: tensor for name, tensor in adapter.dense.items()}


def from_state_dict(state: Mapping[str, torch.Tensor], scalings: Mapping[str, float] | float = 1.0) -> LoraAdapter:
    """Build an adapter from tensors named as PEFT names them in its files, e.g. by `get_peft_model_state_dict`.

    Args:
        state: PEFT key -> tensor.
        scalings: Module path -> scaling of its layer, or one for all.

    Returns:
        An adapter of copies on the CPU, so a model may train on without changing it.

    Raises:
        AdapterFormatError: A key without PEFT's prefix, a factor without its partner, or factors that do not fit.
        UnsupportedAdapterError: Tensors of DoRA, `lora_bias`, or a grouped convolution.
        AdapterShapeError: `scalings` lacks a module.
    """
    copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in state.items()}
    return with_scalings(assemble(copies, "state dict"), scalings)


def assemble(state: Mapping[str, torch.Tensor], subject: str) -> LoraAdapter:
    """Build an adapter from tensors named as PEFT names them, without copying.

    Args:
        state: PEFT key -> tensor, no longer used by anyone else.
        subject: Whom to name in errors.

    Returns:
        The adapter, scaling 1, sharing memory with `state`.

    Raises:
        AdapterFormatError: A key without PEFT's prefix, a factor without its partner, or factors that do not fit.
        UnsupportedAdapterError: Tensors of DoRA, `lora_bias`, or a grouped convolution.
    """
    factors: dict[str, dict[str, torch.Tensor]] = {}
    dense: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if not key.startswith(_KEY_PREFIX):
            raise AdapterFormatError(
                f"{subject}, tensor {key}", "is not named as PEFT names tensors", expected=f"{_KEY_PREFIX}..."
            )
        name = key.removeprefix(_KEY_PREFIX)
        if match := _FACTOR_KEY.fullmatch(name):
            factors.setdefault(match["path"], {})[match["factor"]] = tensor
        elif _FOREIGN_KEY.fullmatch(name):
            raise UnsupportedAdapterError(
                f"{subject}, tensor {key}",
                "belongs to a LoRA variant (DoRA, lora_bias, AdaLoRA, ...) that has no correct aggregate here",
                remedy="train plain LoRA or rsLoRA",
            )
        else:
            dense[name] = tensor
    return LoraAdapter({path: _pair(f"{subject}, module {path}", f) for path, f in factors.items()}, dense)


def with_scalings(adapter: LoraAdapter, scalings: Mapping[str, float] | float) -> LoraAdapter:
    """Say which scaling the pairs were stored under; the factors stay as they are.

    Args:
        adapter: Any adapter; its own scalings are replaced, not folded.
        scalings: Module path -> scaling of its layer, or one for all.

    Raises:
        AdapterShapeError: `scalings` lacks a module.
    """
    by_path = dict.fromkeys(adapter.pairs, scalings) if isinstance(scalings, int | float) else scalings
    missing = sorted(set(adapter.pairs) - set(by_path))
    if missing:
        raise AdapterShapeError(f"module {missing[0]}", "no scaling was given for it", expected="one for every module")
    pairs = {path: replace(pair, scaling=by_path[path]) for path, pair in adapter.pairs.items()}
    return LoraAdapter(pairs, adapter.dense)


def _pair(subject: str, factors: Mapping[str, torch.Tensor]) -> LoraPair:
    if set(factors) not in (set(_LAYER), set(_EMBEDDING)):
        raise AdapterFormatError(
            subject,
            "does not hold one pair of factors",
            got=sorted(factors),
            expected=" or ".join(map(str, (_LAYER, _EMBEDDING))),
        )
    is_embedding = set(factors) == set(_EMBEDDING)
    a, b = (factors[name] for name in (_EMBEDDING if is_embedding else _LAYER))
    _check_factors(subject, a, b, is_embedding=is_embedding)
    kind = "embedding" if is_embedding else "conv" if a.ndim > 2 else "linear"
    form = LayerForm(kind, tuple(a.shape[1:]), tuple(b.shape[2:]))
    return LoraPair(a.reshape(a.shape[0], math.prod(form.a_tail)), b.reshape(b.shape[:2]), form=form)


def _check_factors(subject: str, a: torch.Tensor, b: torch.Tensor, *, is_embedding: bool) -> None:
    has_form = a.ndim == b.ndim and (a.ndim == 2 or (a.ndim > 2 and not is_embedding and set(b.shape[2:]) == {1}))
    if not has_form or not a.numel() or not b.numel() or not (a.is_floating_point() and b.is_floating_point()):
        raise AdapterFormatError(
            subject,
            "factors have no shape or dtype that PEFT gives them",
            got=f"A {tuple(a.shape)} {a.dtype}, B {tuple(b.shape)} {b.dtype}",
            expected="A [R, I, ...] and B [O, R, 1, ...], floating, none empty",
            remedy="save the adapter again; sharded training must gather weights before saving",
        )
    if a.shape[0] == b.shape[1]:
        return
    sizes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
    if a.ndim > 2 and a.shape[0] % b.shape[1] == 0:
        raise UnsupportedAdapterError(
            subject,
            "is a grouped convolution, whose update is not one product of its factors",
            got=sizes,
            remedy="leave grouped convolutions out of target_modules",
        )
    raise AdapterFormatError(subject, "factors have different ranks", got=sizes, expected="A [R, ...], B [O, R, ...]")
