"""The bill of bytes: what moved, and what would have moved otherwise.

A line is one object that crossed the link between one client and the bucket, at its true size. The counterfactuals
count raw float32 tensors without any envelope, so savings are never flattered.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

FLOAT32_BYTES = 4


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One object that moved.

    Args:
        client_id: Between this client and the bucket.
        attempt: In which of its tries.
        direction: "uplink" from the client, "downlink" to it.
        what: "plan", "share", "merge", "update", "manifest" or "failure".
        num_bytes: Size [bytes].
    """

    client_id: str
    attempt: int
    direction: Literal["uplink", "downlink"]
    what: str
    num_bytes: int


def adapter_parameters(shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], dense_parameters: int) -> int:
    """Count the numbers in an adapter.

    Args:
        shapes: Module path -> (O, I).
        ranks: Module path -> R.
        dense_parameters: Numbers in tensors trained whole.

    Returns:
        sum of R * (O + I), plus the dense ones.
    """
    return sum(rank * sum(shapes[path]) for path, rank in ranks.items()) + dense_parameters


def round_totals(
    previous: Mapping[str, int],
    lines: Iterable[LedgerLine],
    *,
    full_parameters: int,
    max_rank_parameters: int,
    own_rank_parameters: Mapping[str, int],
) -> dict[str, int]:
    """Add one round to a run's totals.

    The counterfactuals move one payload for every share and every update that really moved: all weights of the base
    model (full fine-tuning), everyone at the largest rank, or the clients' own ranks without a codec.

    Args:
        previous: Totals up to the round before.
        lines: What moved in this round.
        full_parameters: Numbers in the base model.
        max_rank_parameters: Numbers in an adapter of the largest rank.
        own_rank_parameters: Client id -> numbers in its own adapter.

    Returns:
        "uplink_bytes", "downlink_bytes", and the same for "full_", "max_rank_" and "no_codec_" prefixes, summed.
    """
    totals = {name: previous.get(name, 0) for name in TOTALS}
    for line in lines:
        totals[f"{line.direction}_bytes"] += line.num_bytes
        if line.what in {"share", "update"}:
            totals["full_fine_tuning_bytes"] += FLOAT32_BYTES * full_parameters
            totals["max_rank_bytes"] += FLOAT32_BYTES * max_rank_parameters
            totals["no_codec_bytes"] += FLOAT32_BYTES * own_rank_parameters[line.client_id]
    return totals


TOTALS = ("uplink_bytes", "downlink_bytes", "full_fine_tuning_bytes", "max_rank_bytes", "no_codec_bytes")


def saved_fraction(totals: Mapping[str, int], against: str) -> float:
    """Return which part of a counterfactual's bytes was not moved; negative when more was moved.

    Args:
        totals: As `round_totals` returns them.
        against: "full_fine_tuning", "max_rank" or "no_codec".
    """
    other = totals.get(f"{against}_bytes", 0)
    moved = totals.get("uplink_bytes", 0) + totals.get("downlink_bytes", 0)
    return 1.0 - moved / other if other else 0.0
