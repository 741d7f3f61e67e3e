"""Who is invited to a round."""

from collections.abc import Sequence

import numpy as np

from tasks.rounds.seeds import derive_seed


def sample_cohort(
    clients: Sequence[str], *, cohort_size: int, overshoot: int, round_index: int, seed: int
) -> tuple[str, ...]:
    """Invite a cohort, uniformly without replacement.

    Args:
        clients: All client ids, in any order.
        cohort_size: Clients wanted; 0 means all.
        overshoot: Extra clients, to make up for no-shows.
        round_index: The round.
        seed: The run's seed.

    Returns:
        Client ids in sorted order; all clients when the cohort is not smaller.
    """
    everyone = sorted(clients)
    wanted = cohort_size + overshoot
    if cohort_size == 0 or wanted >= len(everyone):
        return tuple(everyone)
    rng = np.random.default_rng(derive_seed(seed, "cohort", round_index))
    return tuple(sorted(rng.choice(everyone, size=wanted, replace=False).tolist()))
