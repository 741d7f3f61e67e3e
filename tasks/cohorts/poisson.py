"""Who is invited to a round that is to hide who took part."""

from collections.abc import Sequence

from tasks.errors import ConfigError
from tasks.rounds.seeds import derive_seed

# `derive_seed` draws from [0, 2**63).
_SEEDS = 2**63


def poisson_cohort(clients: Sequence[str], *, rate: float, round_index: int, seed: int) -> list[str]:
    """Invite each client with the same probability, independently of all others and of all earlier rounds.

    It makes a round cost less privacy, as the accountant counts it, on two conditions. Whoever must not learn of a
    client's data must not know who was invited: with the seed anyone can work it out, so it has to stay with whoever
    invites, and the run's public seed will not do. And nothing may choose after the draw: no-shows that depend on data,
    extra clients to make up for them, or skipped rounds when few were drawn all undo it.

    Args:
        clients: All client ids, each once, in any order.
        rate: Probability that a client is invited, above 0 and at most 1.
        round_index: The round.
        seed: A secret seed.

    Returns:
        Client ids in sorted order; there may be none, and the round counts all the same.

    Raises:
        ConfigError: The rate is out of its bounds.

    Invariants:
        Whether a client is invited depends on the seed, the round and its id alone. Who is invited at one rate is
        invited at every higher one.
    """
    if not 0 < rate <= 1:
        raise ConfigError("sampling rate", "is not a probability to invite with", got=rate, expected="above 0, up to 1")
    return sorted(c for c in clients if derive_seed(seed, "poisson", round_index, c) < rate * _SEEDS)
