"""A copy of the base model with LoRA on it, made without copying what stays frozen.

Many clients in one process then hold one base model. What is targeted is decided by the callers in `adaptation.py`.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from tasks.errors import ModelError
from tasks.training.models import BaseModel
from tasks.training.randomness import seeded
from tasks.training.targets import LoraSpec, trained_whole


def skeleton(base: BaseModel, lora: LoraSpec, config: LoraConfig, *, seed: int) -> PeftModel:
    """Put PEFT's LoRA on a copy of the base model that shares its frozen tensors.

    Args:
        base: The base model.
        lora: Bias, modules to train whole, and scalings.
        config: Ranks and targets; the rest is filled in here.
        seed: Seed of PEFT's own initialisation.

    Returns:
        A PEFT model; what it trains is its own, buffers too.

    Raises:
        ModelError: PEFT knows no way to adapt what is targeted, or a scaling without an alpha.
    """
    config.bias = "none" if lora.whole_model else lora.bias
    config.modules_to_save = trained_whole(base, lora) or None
    config.use_rslora, config.lora_alpha, config.alpha_pattern = _alphas(lora, config)
    # Tensors in the memo are shared by the copy. Biases that will be trained must not be.
    shared = (p for n, p in base.network.named_parameters() if config.bias == "none" or not n.endswith("bias"))
    network = copy.deepcopy(base.network, {id(parameter): parameter for parameter in shared})
    try:
        with seeded(seed), _quiet(network):
            return get_peft_model(network, config)
    except ValueError as error:
        raise ModelError(
            "lora.target_modules", "PEFT cannot adapt these modules", got=str(error).strip().splitlines()[0],
            remedy="name linear, convolutional or embedding layers, or use all-linear",
        ) from error  # fmt: skip


@contextmanager
def _quiet(network: nn.Module) -> Iterator[None]:
    # PEFT's own doing, not the user's: it asks transformers for a renamed property, and corrects fan_in_fan_out itself
    # layer by layer. Small networks need no filter, and Python's filters are better left alone where threads run.
    if not isinstance(network, PreTrainedModel):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        yield


def _alphas(lora: LoraSpec, config: LoraConfig) -> tuple[bool, Any, dict[str, Any]]:
    if lora.whole_model:
        return False, config.r, {}
    if lora.alpha:
        return lora.use_rslora, lora.alpha, {}
    if lora.use_rslora:
        raise ModelError(
            "lora.use_rslora", "needs an alpha to divide by the root of the rank",
            remedy="set lora.alpha (16 is common), or turn rsLoRA off: alpha 0 means scaling 1 at every rank",
        )  # fmt: skip
    return False, config.r, dict(config.rank_pattern or {})
