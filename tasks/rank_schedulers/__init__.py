"""Which rank each client trains at in the next round; one scheduler per file, all in `RANK_SCHEDULERS`."""

from tasks.rank_schedulers.decision import RankDecision, RankSignals, initial_ranks, module_ranks
from tasks.rank_schedulers.table import RANK_SCHEDULERS, rank_scheduler

__all__ = [
    "RANK_SCHEDULERS",
    "RankDecision",
    "RankSignals",
    "initial_ranks",
    "module_ranks",
    "rank_scheduler",
]
