"""Clients whose updates arrived stand in for like ones whose updates did not: a round's weights and its memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.sections.options import values_of
from configs.workbench import Workbench
from infra.round_reader import RoundReader
from tasks.aggregators.distance_memory import DistanceMemory, observe, round_distances
from tasks.aggregators.similarity import change
from tasks.aggregators.surrogates import SURROGATES, SurrogateRule, surrogate_weights
from tasks.aggregators.weightings import Contribution, weighting
from tasks.options import chosen
from tasks.rounds.knowledge import ClientKnowledge
from tasks.rounds.records import Acceptance, RoundRecord


@dataclass(frozen=True)
class StandIns:
    """What standing in made of a round.

    Args:
        weights: One for each accepted update, in their order.
        notes: Missing client -> who stands in for it; clients that nobody is like are not named.
        distances: The memory after the round, as records hold it.
        figures: "surrogates_covered": share of the missing clients that somebody stands in for.
    """

    weights: Sequence[float]
    notes: Mapping[str, str] = field(default_factory=dict)
    distances: tuple[tuple[str, str, float, int], ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


def stand_in(
    reader: RoundReader,
    accepted: Sequence[Acceptance],
    weights: Sequence[float],
    previous: RoundRecord,
    bench: Workbench,
) -> StandIns:
    """Let received clients stand in for missing ones, where the config says so.

    Args:
        reader: The round.
        accepted: Whose updates arrived.
        weights: What each of them counts by itself.
        previous: The record of the round before, for what is known of the missing ones.
        bench: The run's weighting and its options.
    """
    aggregation = bench.config.aggregation
    if not aggregation.surrogates or not accepted:
        return StandIns(weights)
    values: dict[str, Any] = chosen(SURROGATES.name, SURROGATES.options, values_of(aggregation.surrogate_options))
    rule = SurrogateRule(**values)
    received = {a.client_id: weight for a, weight in zip(accepted, weights, strict=True)}
    invited = (invitation.client_id for invitation in reader.plan.invitations)
    missing = {c: previous.knowledge[c] for c in invited if c not in received and c in previous.knowledge}
    memory = DistanceMemory.from_rows(previous.distances)
    found = surrogate_weights(
        received,
        _weights_of(missing, aggregation.weighting),
        memory,
        ages={client: reader.plan.round_index - known.last_round for client, known in missing.items()},
        rule=rule,
    )
    changes = {a.client_id: change(reader.update(a), reader.start_of(a)) for a in accepted}
    return StandIns(
        weights=[found.weights[acceptance.client_id] for acceptance in accepted],
        notes={client: f"{other} stands in" for client, other in found.notes.items() if other},
        distances=observe(memory, round_distances(changes), kappa=rule.kappa).to_rows(),
        figures={"surrogates_covered": found.covered},
    )


def _weights_of(missing: Mapping[str, ClientKnowledge], name: str) -> dict[str, float]:
    """Return what missing clients would have counted, had they come with what they last showed."""
    contributions = [
        Contribution(
            client_id=client, num_examples=known.num_examples, update_norm=known.update_norm or 0.0, quality=None
        )
        for client, known in missing.items()
    ]
    return dict(zip(missing, weighting(name)(contributions), strict=True)) if contributions else {}
