"""The sections of an experiment: one form box each. Bounds are inclusive because the form knows no others."""

from configs.sections.aggregation import NO_RULE, AggregationConfig, MethodOption
from configs.sections.data import DataConfig
from configs.sections.evaluation import EvaluationConfig, PublishingConfig
from configs.sections.federation import CohortConfig, DispatchConfig, ExchangeConfig, RanksConfig
from configs.sections.model import ModelConfig
from configs.sections.privacy import PrivacyConfig
from configs.sections.training import TrainingConfig

__all__ = [
    "NO_RULE",
    "AggregationConfig",
    "CohortConfig",
    "DataConfig",
    "DispatchConfig",
    "EvaluationConfig",
    "ExchangeConfig",
    "MethodOption",
    "ModelConfig",
    "PrivacyConfig",
    "PublishingConfig",
    "RanksConfig",
    "TrainingConfig",
]
