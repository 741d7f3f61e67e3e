"""How updates of unequal rank become one adapter: one published method per file, all in `AGGREGATORS`."""

from tasks.aggregators.cohort import aggregate
from tasks.aggregators.fold import Fold
from tasks.aggregators.promises import Aggregator
from tasks.aggregators.table import AGGREGATORS, aggregator
from tasks.aggregators.weightings import WEIGHTINGS, Contribution, weighting

__all__ = [
    "AGGREGATORS",
    "WEIGHTINGS",
    "Aggregator",
    "Contribution",
    "Fold",
    "aggregate",
    "aggregator",
    "weighting",
]
