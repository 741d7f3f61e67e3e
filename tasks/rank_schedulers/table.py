"""The table of rank schedulers: forms, validation and the law suite all read it."""

from tasks.errors import UnknownNameError
from tasks.rank_schedulers.budget import BUDGET_OPTIONS, budget
from tasks.rank_schedulers.capability import CAPABILITY_OPTIONS, capability
from tasks.rank_schedulers.energy import ENERGY_OPTIONS, energy
from tasks.rank_schedulers.fixed import fixed
from tasks.rank_schedulers.hetlora_prune import hetlora_prune
from tasks.rank_schedulers.promises import RankScheduler
from tasks.rank_schedulers.sa_annealing import ANNEALING_OPTIONS, sa_annealing

RANK_SCHEDULERS: dict[str, RankScheduler] = {
    "fixed": RankScheduler(
        name="fixed",
        title="Fixed ranks",
        paper="",
        propose=fixed,
        equal_ranks=True,
    ),
    "sa_annealing": RankScheduler(
        name="sa_annealing",
        title="Annealing: high ranks first, low ranks last",
        paper="https://arxiv.org/abs/2405.09394v1",
        propose=sa_annealing,
        equal_ranks=True,
        options=ANNEALING_OPTIONS,
    ),
    "capability": RankScheduler(
        name="capability",
        title="What memory, deadline and data bear",
        paper="",
        propose=capability,
        equal_ranks=False,
        follows_clients=True,
        options=CAPABILITY_OPTIONS,
    ),
    "energy": RankScheduler(
        name="energy",
        title="What the adapter's energy needs",
        paper="",
        propose=energy,
        equal_ranks=True,
        reads_spectra=True,
        options=ENERGY_OPTIONS,
    ),
    "budget": RankScheduler(
        name="budget",
        title="What the budget of bytes pays for",
        paper="",
        propose=budget,
        equal_ranks=False,
        follows_clients=True,
        options=BUDGET_OPTIONS,
    ),
    "hetlora_prune": RankScheduler(
        name="hetlora_prune",
        title="What clients pruned themselves to (HetLoRA)",
        paper="https://arxiv.org/abs/2401.06432",
        propose=hetlora_prune,
        equal_ranks=False,
        follows_clients=True,
    ),
}


def rank_scheduler(name: str) -> RankScheduler:
    """Look up a rank scheduler.

    Raises:
        UnknownNameError: No scheduler has this name.
    """
    if name not in RANK_SCHEDULERS:
        raise UnknownNameError("rank scheduler", name, RANK_SCHEDULERS)
    return RANK_SCHEDULERS[name]
