"""What a rank scheduler is told and what it answers; the arithmetic from a client's rank to its modules' ranks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.rounds.capabilities import Capability, Limit


@dataclass(frozen=True)
class RankCosts:
    """What a rank costs a client.

    Args:
        values: Rank -> numbers in the adapter of a client of this rank, dense tensors included; rises with the rank.
        base_values: Numbers in the base model.
        uplink_bytes: Bytes of one number on the way up [bytes].
        downlink_bytes: Bytes of one number on the way down [bytes].
        overhead_bytes: Bytes that a client costs in a round whatever its rank: plan, manifest, envelopes [bytes].
        deadline_s: How long a round may take [s].
    """

    values: Callable[[int], int]
    base_values: int
    uplink_bytes: float = 4.0
    downlink_bytes: float = 4.0
    overhead_bytes: float = 0.0
    deadline_s: float = 3600.0


@dataclass(frozen=True)
class RankSignals:
    """What a scheduler may look at when it decides about the next round.

    Args:
        round_index: The round that ended; 0 before the first.
        rounds_done: Rounds that trained so far.
        num_rounds: Rounds the run is to train.
        ranks: Client id -> rank in the round that ended.
        ceilings: Client id -> largest rank that the config gives it.
        max_rank: The largest rank of the run.
        cohort_size: Clients that are invited to a round.
        costs: What a rank costs.
        capabilities: Client id -> what is known of its machine, smoothed over rounds; those never heard of are missing.
        limits: Client id -> what it turned out not to manage.
        spectra: Module path -> singular values of the new global adapter, falling; empty before the first round.
        spent_bytes: Bytes moved so far [bytes].
    """

    round_index: int
    rounds_done: int
    num_rounds: int
    ranks: Mapping[str, int]
    ceilings: Mapping[str, int]
    max_rank: int
    cohort_size: int
    costs: RankCosts
    capabilities: Mapping[str, Capability] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    spectra: Mapping[str, Sequence[float]] = field(default_factory=dict)
    spent_bytes: int = 0


@dataclass(frozen=True)
class Bound:
    """How large one client's rank may be, in one scheduler's view.

    Args:
        rank: At most this rank; below 1 means 1, and above the client's ceiling bounds nothing.
        reason: Why, as a person would read it beside the change, e.g. "deadline 60 s at 1.2 MB/s".
    """

    rank: int
    reason: str


@dataclass(frozen=True)
class RankDecision:
    """The ranks of the next round.

    Args:
        ranks: Client id -> rank, for every client.
        reasons: Client id -> why its rank changed; clients whose rank stays are left out.
    """

    ranks: Mapping[str, int]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class NextRanks:
    """Ranks of the next round, and what is known of the clients' machines by now.

    Args:
        decision: Ranks of all clients, and why some changed.
        capabilities: Client id -> what is known of its machine.
        limits: Client id -> what it turned out not to manage.
    """

    decision: RankDecision
    capabilities: Mapping[str, Capability]
    limits: Mapping[str, Limit]


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
