"""What one step of a round hands to the next: keys and numbers, never tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from tasks.rounds.keys import GLOBAL
from tasks.rounds.records import Acceptance, Collection, GlobalModel, Held, RoundPlan


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
class Group:
    """Updates that become one global adapter.

    Args:
        model: Name of that adapter.
        parent: The model of the round before that it goes on from.
        accepted: Its updates, by client id.
        members: All clients seen so far that belong to it, absent ones included; empty when there is no other model.
    """

    model: str
    parent: str
    accepted: tuple[Acceptance, ...]
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grouping:
    """All groups of a round.

    Args:
        groups: Each with at least one update.
        labels: Client id -> model name, for every client seen so far; empty when all clients share the one model.
    """

    groups: tuple[Group, ...]
    labels: dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """An aggregated adapter that nobody has judged yet.

    Args:
        group: What it was woven from.
        adapter: Where it lies; no version yet.
        weights: Client id -> share of the aggregate, summing to 1.
        seconds: Time the aggregation took [s]; no part of the record, which must not depend on the machine.
        figures: Numbers about the aggregation itself, by metric name.
        notes: Client id -> what a robust rule did to its update; clients left alone are not named.
        held: Client id -> the step that the server holds of it from now on, where clients are lazy.
        distances: How far apart clients' updates have been, as records hold it, where clients stand in for others.
    """

    group: Group
    adapter: GlobalModel
    weights: dict[str, float]
    seconds: float
    figures: dict[str, float]
    notes: dict[str, str]
    held: dict[str, Held] = field(default_factory=dict)
    distances: tuple[tuple[str, str, float, int], ...] = ()


def one_group(collection: Collection) -> Grouping:
    """Return all of a round's updates as the one group of a run without clusters."""
    return Grouping((Group(GLOBAL, GLOBAL, collection.accepted),), {})


@dataclass(frozen=True)
class Judged:
    """A candidate with its figures and its version in the registry.

    Args:
        candidate: The candidate.
        metrics: Its evaluation.
        version: Its version.
    """

    candidate: Candidate
    metrics: dict[str, float]
    version: int


def with_version(judged: Judged) -> GlobalModel:
    """Return the adapter as records name it once it is published."""
    return msgspec.structs.replace(judged.candidate.adapter, version=judged.version)


def overall(judged: Sequence[Judged]) -> dict[str, float]:
    """Return a round's figures: those of its one model, or the clusters' own and their mean by examples.

    Args:
        judged: The round's new adapters, at least one.

    Returns:
        Metric -> value; with clusters also "<metric>_<cluster>".
    """
    named = [(one.candidate.group, {**one.candidate.figures, **one.metrics}) for one in judged]
    if len(named) == 1 and named[0][0].model == GLOBAL:
        return named[0][1]
    figures: dict[str, float] = {"clusters": float(len(named))}
    for name in sorted({name for _, metrics in named for name in metrics}):
        parts = [(metrics[name], group) for group, metrics in named if name in metrics]
        sizes = [sum(acceptance.num_examples for acceptance in group.accepted) for _, group in parts]
        figures[name] = sum(value * size for (value, _), size in zip(parts, sizes, strict=True)) / sum(sizes)
        figures |= {f"{name}_{group.model.replace('-', '_')}": value for value, group in parts}
    return figures
