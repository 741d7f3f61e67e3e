"""Which rank each client trains at in the next round; one scheduler per file, all in `RANK_SCHEDULERS`."""

from tasks.rank_schedulers.decision import (
    Bound,
    NextRanks,
    RankCosts,
    RankDecision,
    RankSignals,
    initial_ranks,
    module_ranks,
)
from tasks.rank_schedulers.promises import RankScheduler
from tasks.rank_schedulers.sa_annealing import Annealing, annealed_rank
from tasks.rank_schedulers.smoothing import smoothed
from tasks.rank_schedulers.table import RANK_SCHEDULERS, rank_scheduler
from tasks.rank_schedulers.together import decide

__all__ = [
    "RANK_SCHEDULERS",
    "Annealing",
    "Bound",
    "NextRanks",
    "RankCosts",
    "RankDecision",
    "RankScheduler",
    "RankSignals",
    "annealed_rank",
    "decide",
    "initial_ranks",
    "module_ranks",
    "rank_scheduler",
    "smoothed",
]
