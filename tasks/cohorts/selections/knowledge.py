"""What the server knows of a client when it chooses a cohort, and the draws that the choices share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.options import Option
from tasks.rounds.knowledge import ClientKnowledge
from tasks.rounds.seeds import derive_seed

__all__ = ["FLOOR", "ClientKnowledge", "Draw", "wanted"]

FLOOR = Option(
    name="floor",
    description="chance that a place in the cohort is drawn uniformly, so that nobody starves [fraction]",
    default=0.1,
    least=0.01,
)

# `derive_seed` draws from [0, 2**63).
_SEEDS = 2.0**63


@dataclass(frozen=True)
class Draw:
    """Whose draw it is: the same draw gives the same numbers.

    Args:
        seed: The run's seed.
        round_index: The round.
    """

    seed: int
    round_index: int

    def race(self, weights: Mapping[str, float], places: int, purpose: str) -> list[str]:
        r"""Draw clients without replacement, the next one always in proportion to the weights of those left.

        Each client waits $-\ln(u) / w$ with u uniform in (0, 1), and the first ones are drawn.

        Args:
            weights: Client id -> weight, 0 or more; a client of weight 0 is drawn after all others.
            places: How many to draw; all if there are fewer.
            purpose: What the draw is for; another one is independent.

        Returns:
            Clients in the order they are drawn. Each client's waiting time depends on the draw, the purpose, its id and
            its own weight alone.

        References:
            Pavlos S. Efraimidis, Paul G. Spirakis, "Weighted random sampling with a reservoir", Information Processing
            Letters 97 (2006); recalled, in its exponential form.
        """
        waits = {c: (-math.log(u) / w if w else math.inf, -u) for c, w in weights.items() for u in [self.u(purpose, c)]}
        return sorted(waits, key=lambda client: (waits[client], client))[:places]

    def u(self, purpose: str, label: str | int) -> float:
        """Return a number uniform in (0, 1) that belongs to a purpose and a label."""
        return (derive_seed(self.seed, "selection", purpose, self.round_index, label) + 1) / (_SEEDS + 2)


def wanted(clients: Sequence[str], size: int) -> int:
    """Return how many clients a cohort has.

    Args:
        clients: All client ids, each once.
        size: Clients wanted; 0 means all.
    """
    return min(size, len(clients)) if size else len(clients)
