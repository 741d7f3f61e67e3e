"""What `adapter_config.json` says about each module, read as PEFT reads it and written so that PEFT reads it back.

Here: ranks, scalings, patterns, and which PEFT features have no correct aggregate. Not here: tensors and their keys,
files (`peft_files`).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tasks.errors import AdapterFormatError, UnsupportedAdapterError

_UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "use_dora": "DoRA's magnitudes make the update depend on the base weights",
        "lora_bias": "a bias inside B is no part of the product of the factors",
        "use_qalora": "QALoRA's A acts on pooled inputs",
        "use_bdlora": "block-diagonal factors do not stay so when they are averaged",
        "kasa_config": "KaSA's singular values are no part of the product of two factors",
        "monteclora_config": "MonteCLoRA's factors are distributions",
        "arrow_config": "Arrow routes between adapters and is none itself",
        "target_parameters": "factors of bare parameters hold several experts in one tensor",
    }
)
_LARGEST = 1e9
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def parse_config(text: str | bytes, subject: str) -> dict[str, Any]:
    """Read the text of an `adapter_config.json`, refusing what cannot be aggregated correctly.

    Args:
        text: The file's content.
        subject: Whom to name in errors: the file.

    Returns:
        The config as plain values.

    Raises:
        AdapterFormatError: Not a JSON object, or `r` or `lora_alpha` is missing or no positive number.
        UnsupportedAdapterError: Another PEFT method, or a LoRA variant whose update is not `scaling * b @ a`.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(subject, f"is not JSON ({error})", remedy="save the adapter again") from error
    if not isinstance(config, dict):
        raise AdapterFormatError(
            subject, "is not a JSON object", got=type(config).__name__, remedy="save the adapter again"
        )
    _check_supported(config, subject)
    _whole(config.get("r"), "r", subject)
    _positive(config.get("lora_alpha"), "lora_alpha", subject)
    return config


def declared_layers(config: Mapping[str, Any], paths: Iterable[str], subject: str) -> dict[str, tuple[int, float]]:
    """Resolve rank and scaling of every module, patterns and rsLoRA included.

    Args:
        config: A config from `parse_config`.
        paths: Module paths.
        subject: Whom to name in errors: the file.

    Returns:
        Module path -> (rank, scaling).

    Raises:
        AdapterFormatError: A pattern is no regular expression, or its value no usable number.
    """
    ranks, alphas = (_patterns(config, key, subject) for key in ("rank_pattern", "alpha_pattern"))
    layers = {}
    for path in paths:
        rank = _whole(_resolved(ranks, path, config["r"], subject), "rank_pattern", subject)
        alpha = _positive(_resolved(alphas, path, config["lora_alpha"], subject), "alpha_pattern", subject)
        layers[path] = (rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return layers


def config_for(ranks: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config under which PEFT gives every module its rank and scaling 1.

    Args:
        ranks: Module path -> rank; empty only where the config has modules to save.
        config: What else to say: base model, task type, modules to save, bias, ... If its `target_modules` do not
            reach every module, the exact module paths take their place.

    Returns:
        A config with `lora_alpha == r` and `alpha_pattern == rank_pattern`, rsLoRA off, sets as sorted lists.

    Raises:
        AdapterFormatError: There is no module, nor one to save.
        UnsupportedAdapterError: The config asks for a LoRA variant or start that has no correct aggregate here.
    """
    if not ranks and not config.get("modules_to_save"):
        raise AdapterFormatError(
            "adapter", "has no LoRA module, PEFT needs one at least", remedy="adapt a module, or name modules to save"
        )
    plain = {key: sorted(v) if isinstance(v, set | frozenset) else v for key, v in config.items()}
    plain = {"peft_type": "LORA", **plain}
    _check_supported(plain, "adapter config")
    largest = max(ranks.values(), default=1)
    # PEFT matches `(.*\.)?(KEY)$`; the caret keeps "layers.1" from also naming "x.layers.1".
    pattern = {f"^{re.escape(path)}": rank for path, rank in sorted(ranks.items()) if rank != largest}
    plain |= {
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
    }
    if not _reaches(plain.get("target_modules"), ranks):
        plain |= {"target_modules": sorted(ranks), "layers_to_transform": None, "layers_pattern": None}
    return plain


def config_json(config: Mapping[str, Any]) -> bytes:
    """Serialise a config, byte for byte the same for the same config.

    Raises:
        AdapterFormatError: It holds a value that JSON cannot.
    """
    try:
        return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    except TypeError as error:
        raise AdapterFormatError(
            "adapter config", f"cannot be written as JSON ({error})", remedy="use plain values"
        ) from error


def _check_supported(config: Mapping[str, Any], subject: str) -> None:
    if config.get("peft_type") != "LORA":
        raise UnsupportedAdapterError(
            subject, "is another PEFT method", got=config.get("peft_type"), expected="peft_type LORA"
        )
    for key, why in _UNSUPPORTED.items():
        if config.get(key):
            raise UnsupportedAdapterError(
                subject, f"{key} is set: {why}", remedy=f"train again without {key}; plain LoRA and rsLoRA work"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        raise UnsupportedAdapterError(
            subject,
            "its start moved weights into the adapter, so the base model it belongs to is no longer the original",
            got=f"init_lora_weights {start!r}",
            remedy="convert it to plain LoRA with PEFT's path_initial_model_for_weight_conversion",
        )


def _positive(value: object, name: str, subject: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST:
        return float(value)
    raise _unusable(value, name, subject, expected="a positive number")


def _whole(value: object, name: str, subject: str) -> int:
    number = _positive(value, name, subject)
    if not number.is_integer():
        raise _unusable(value, name, subject, expected="a whole number of 1 or more")
    return int(number)


def _unusable(value: object, name: str, subject: str, *, expected: str) -> AdapterFormatError:
    return AdapterFormatError(
        subject,
        f"{name} is not usable",
        got=repr(value),
        expected=expected,
        remedy="save the adapter again with PEFT",
    )


def _patterns(config: Mapping[str, Any], key: str, subject: str) -> Mapping[str, object]:
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise _unusable(patterns, key, subject, expected="an object of pattern and number")
    return patterns


def _resolved(patterns: Mapping[str, object], path: str, default: object, subject: str) -> object:
    if not patterns:
        return default
    # PEFT's own matcher, so that we can never resolve a pattern otherwise than the loader will; a slow import.
    from peft.utils.other import get_pattern_key

    try:
        return patterns.get(get_pattern_key(list(patterns), path), default)
    except re.error as error:
        raise AdapterFormatError(
            subject, f"a pattern is no regular expression ({error})", remedy="save the adapter again with PEFT"
        ) from error


def _reaches(target: object, paths: Iterable[str]) -> bool:
    if isinstance(target, str):
        return target != "all-linear" and all(re.fullmatch(target, path) for path in paths)
    if not isinstance(target, list | tuple):
        return False
    return all(any(path == name or path.endswith(f".{name}") for name in target) for path in paths)
