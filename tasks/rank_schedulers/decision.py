"""What a rank scheduler is told and what it answers; the arithmetic from a client's rank to its modules' ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankSignals:
    """What a scheduler may look at when a round has ended.

    Args:
        round_index: The round that ended.
        num_rounds: Rounds of the run.
        ranks: Client id -> rank in it.
        max_rank: The largest rank of the run.
        capabilities: Client id -> measured figures, e.g. "examples_per_s"; empty where none were measured.
        metrics: Evaluation of the round's global adapter.
        spent_bytes: Bytes moved so far [bytes].
    """

    round_index: int
    num_rounds: int
    ranks: Mapping[str, int]
    max_rank: int
    capabilities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    spent_bytes: int = 0


@dataclass(frozen=True)
class RankDecision:
    """The ranks of the next round.

    Args:
        ranks: Client id -> rank, for every client.
        reasons: Client id -> why its rank changed; clients whose rank stays are left out.
    """

    ranks: Mapping[str, int]
    reasons: Mapping[str, str]


def initial_ranks(clients: list[str], max_rank: int, fractions: list[float]) -> dict[str, int]:
    """Deal ranks to clients in id order, as fractions of the largest rank.

    Args:
        clients: Client ids.
        max_rank: The largest rank.
        fractions: Fractions in (0, 1]; dealt in turn, from the start again when there are more clients.

    Returns:
        Client id -> rank, at least 1, rounded half up.
    """
    return {
        client: max(1, int(fractions[i % len(fractions)] * max_rank + 0.5)) for i, client in enumerate(sorted(clients))
    }


def module_ranks(rank: int, max_rank: int, ceilings: Mapping[str, int]) -> dict[str, int]:
    """Spread a client's rank over modules whose own largest ranks differ.

    Args:
        rank: The client's rank, 1 to `max_rank`.
        max_rank: The run's largest rank.
        ceilings: Module path -> the module's rank at `max_rank`.

    Returns:
        Module path -> the same fraction of its ceiling, at least 1, rounded half up.
    """
    return {path: max(1, int(ceiling * rank / max_rank + 0.5)) for path, ceiling in ceilings.items()}
