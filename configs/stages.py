"""Training the whole model, in all rounds or in those before low ranks start: when, and what goes with it.

Full fine-tuning is what SA-FedLoRA's savings are counted against, and its first stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from configs.sections import NO_RULE
from configs.sections.options import values_of
from tasks.options import chosen
from tasks.rank_schedulers.sa_annealing import ANNEALING_OPTIONS, whole_rounds

if TYPE_CHECKING:
    from configs.experiment import ExperimentConfig

ANNEALING = "sa_annealing"
MEAN = "fedavg"
ANY_TENSOR = ("lora", "proximal")
"""Local methods that do the same to any trained tensor; the others know what to do with factors."""


def initiates_whole(config: ExperimentConfig) -> bool:
    """Tell whether a run asks for a first stage on the whole model."""
    return _annealing_options(config).get("initiating") == "full"


def rounds_on_whole_model(config: ExperimentConfig, base_values: int) -> int:
    """Return how many of a run's first rounds train the whole model.

    Args:
        config: The experiment.
        base_values: Numbers in the base model.
    """
    options: dict[str, Any] = chosen(ANNEALING, ANNEALING_OPTIONS, _annealing_options(config))
    return whole_rounds(base_values, **options)


def on_whole_model(config: ExperimentConfig) -> ExperimentConfig:
    """Return the same experiment with every weight trained."""
    lora = config.model.lora.model_copy(update={"whole_model": True})
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})})


def whole_model_fits(config: ExperimentConfig) -> str:
    """Return why a run cannot train the whole model, in any of its stages; empty where it can, or does not want to."""
    always, first = config.model.lora.whole_model, initiates_whole(config)
    if not always and not first:
        return ""
    field = "model.lora.whole_model" if always else "ranks.options: initiating full"
    schedulers = ["fixed"] if always else [ANNEALING]
    aggregation = config.aggregation
    foreign = [name for name in config.training.local_methods if name not in ANY_TENSOR]
    refused = {
        f"there are no factors for {aggregation.name} to weave; use {MEAN}": aggregation.name != MEAN,
        f"ranks do not move on the whole model; use ranks.schedulers {schedulers}": config.ranks.schedulers
        != schedulers,
        "robust rules compare products, and there are none; leave aggregation.robust out": aggregation.robust
        != NO_RULE,
        "clusters compare products, and there are none; turn them off": aggregation.clusters.enabled,
        "ranked goes by the norm of products, and there are none; use by_examples": aggregation.weighting == "ranked",
        f"{', '.join(foreign)} needs factors; use {' or '.join(ANY_TENSOR)}": bool(foreign),
    }
    return next((f"{field}: {reason}" for reason, applies in refused.items() if applies), "")


def _annealing_options(config: ExperimentConfig) -> dict[str, float | str]:
    known = {option.name for option in ANNEALING_OPTIONS} if ANNEALING in config.ranks.schedulers else set()
    return {name: value for name, value in values_of(config.ranks.options).items() if name in known}
