"""A run small enough for tests: five clients, a narrow network, real digits."""

from configs.experiment import ExperimentConfig
from configs.loading import load_config

OVERRIDES = [
    "name=small",
    "rounds=2",
    "data.partition.num_clients=5",
    "model.hidden_sizes=[16]",
    "ranks.max_rank=8",
    "ranks.client_fractions=[0.25, 0.5, 1.0]",
    "cohort.quorum=3",
    "training.epochs=1",
]


def small_config(*overrides: str) -> ExperimentConfig:
    """Return the small run's config with overrides."""
    return load_config("digits-staircase", [*OVERRIDES, *overrides])
