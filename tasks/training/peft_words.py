"""What PEFT has to be told about an adapter, so that it finds the modules the adapter belongs to."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from tasks.adapters.lora import LoraAdapter
from tasks.training.models import BaseModel
from tasks.training.targets import LoraSpec, is_transposed, short_names, trained_whole

_TASK_TYPES = {"sequence_classification": "SEQ_CLS", "causal_lm": "CAUSAL_LM"}


def peft_config(base: BaseModel, lora: LoraSpec, adapter: LoraAdapter) -> dict[str, Any]:
    """Say in PEFT's words what an adapter belongs to, for its `adapter_config.json`; ranks are added on writing.

    Args:
        base: The base model.
        lora: How it was adapted.
        adapter: The adapter to publish; one without pairs is a whole model.

    Returns:
        The content of the file, save for ranks and alphas.
    """
    is_whole = not adapter.pairs
    modules = trained_whole(base, replace(lora, whole_model=is_whole))
    return {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES.get(base.spec.kind),
        "base_model_name_or_path": base.spec.location or f"rankweave/{base.spec.kind}",
        "revision": base.spec.revision or None,
        "target_modules": DUMMY_TARGET_MODULES if is_whole else short_names(base.network, adapter.pairs),
        "modules_to_save": modules or None,
        "bias": "none" if is_whole else lora.bias,
        "lora_dropout": lora.dropout,
        "fan_in_fan_out": _has_transposed(base.network, adapter.pairs),
        "inference_mode": True,
    }


def _has_transposed(network: nn.Module, paths: Iterable[str]) -> bool:
    return any(is_transposed(network.get_submodule(path)) for path in paths)
