"""What one step of a round hands to the next: keys and numbers, never tensors."""

from dataclasses import dataclass

from tasks.rounds.records import RoundPlan


@dataclass(frozen=True)
class Ticket:
    """One client run that is still to be made.

    Args:
        client_id: Who.
        attempt: Which try, from 1.
        pool: Where.
    """

    client_id: str
    attempt: int
    pool: str


@dataclass(frozen=True)
class PlannedRound:
    """A plan and what is left to do of it: all of it, or less after a crash.

    Args:
        plan: The plan.
        tickets: Clients without a finished upload.
    """

    plan: RoundPlan
    tickets: tuple[Ticket, ...]


@dataclass(frozen=True)
class Candidate:
    """An aggregated adapter that nobody has judged yet.

    Args:
        sha256: Digest of its weights file.
        round_index: The round whose key holds it.
        weights: Client id -> share of the aggregate, summing to 1.
    """

    sha256: str
    round_index: int
    weights: dict[str, float]
