"""What a round taught about its clients' machines: the limits they ran into, and the rank they pruned themselves to."""

from collections.abc import Mapping

import msgspec

from tasks.rounds.capabilities import Limit
from tasks.rounds.records import Acceptance, Collection, RoundPlan

OUT_OF_MEMORY = "ClientMemoryError"
"""Reason of the failure that a client reports when nothing it could lower made the training fit."""


def learned_limits(
    known: Mapping[str, Limit], plan: RoundPlan, collection: Collection, *, batch_size: int
) -> dict[str, Limit]:
    """Add what a round showed to what is known.

    Args:
        known: Client id -> limits so far.
        plan: The round's plan, for the ranks clients were invited to.
        collection: Who came back at which rank, and who failed why.
        batch_size: The configured batch [examples].

    Returns:
        Client id -> limits; those of clients that met none stay as they were. A client that failed for want of memory
        is offered half the rank and half the batch next time, as far as there are any; where ranks must be equal, half
        the batch alone.
    """
    limits = dict(known)
    for acceptance in collection.accepted:
        if (limit := _after(limits.get(acceptance.client_id, Limit()), acceptance)) != Limit():
            limits[acceptance.client_id] = limit
    invited = {invitation.client_id: invitation for invitation in plan.invitations}
    accepted = {acceptance.client_id for acceptance in collection.accepted}
    for refusal in collection.refused:
        client = refusal.client_id
        is_new = refusal.round_index == plan.round_index and client not in accepted
        if refusal.reason == OUT_OF_MEMORY and is_new and client in invited:
            invitation = invited[client]
            smaller = {"batch_size": max(1, (invitation.batch_size or batch_size) // 2)}
            if not plan.equal_ranks:
                smaller["memory_rank"] = max(1, invitation.rank // 2)
            limits[client] = msgspec.structs.replace(limits.get(client, Limit()), **smaller)
    return limits


def _after(limit: Limit, acceptance: Acceptance) -> Limit:
    changes: dict[str, int] = {}
    if acceptance.lowered == "memory":
        changes["memory_rank"] = acceptance.rank
    elif acceptance.lowered == "pruned":
        changes["pruned_rank"] = acceptance.rank
    if acceptance.batch_size:
        changes["batch_size"] = acceptance.batch_size
    return msgspec.structs.replace(limit, **changes) if changes else limit
