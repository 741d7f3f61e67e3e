"""The bill of bytes: what moved, and what would have moved otherwise.

A line is what one attempt of a client moved of one kind of object, in one direction, repeats included: the objects'
own bytes, without HTTP headers. The counterfactuals count raw float32 tensors without any envelope, so savings are
never flattered.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from tasks.rounds import keys

FLOAT32_BYTES = 4
MEGABYTE = 1e6
"""How bytes are shown, and budgets given [bytes]."""

COUNTERFACTUALS = ("full_fine_tuning", "max_rank", "no_codec")
"""What would have moved otherwise: all weights, everyone at the largest rank, own ranks without a codec."""

Direction = Literal["uplink", "downlink"]

TOTALS = ("uplink_bytes", "downlink_bytes", *(f"{name}_bytes" for name in COUNTERFACTUALS))

_KINDS = {
    "run.json": "run",
    "plan.json": "plan",
    "record.json": "record",
    "adapter_model.safetensors": "adapter",
    "adapter_config.json": "adapter",
    keys.MERGE: "merge",
    keys.UPDATE: "update",
    keys.MANIFEST: "manifest",
    keys.FAILURE: "failure",
}
_FOLDERS = {"plans": "plan", "downlink": "share", "fusion": "fusion"}


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one attempt moved of one kind of object.

    Args:
        client_id: Between this client and the bucket.
        attempt: In which of its tries.
        direction: "uplink" from the client, "downlink" to it.
        what: The kind of object, as `kind_of` names it.
        num_bytes: Size, as often as it moved; 0 for what the client did not need to be sent [bytes].
        round_index: For which round: what comes late is booked by the round after; 0 in records that do not say.
    """

    client_id: str
    attempt: int
    direction: Direction
    what: str
    num_bytes: int
    round_index: int = 0


def kind_of(key: str) -> str:
    """Name the kind of object that a key holds.

    Args:
        key: Any key.

    Returns:
        "run", "plan", "share", "merge", "update", "manifest", "failure", "record", "adapter", "fusion" or "other".
    """
    folders, _, name = key.rpartition("/")
    folder = next((kind for part, kind in _FOLDERS.items() if part in folders.split("/")), "other")
    return _KINDS.get(name, folder)


def exceeding(lines: Iterable[LedgerLine], booked: Iterable[LedgerLine]) -> list[LedgerLine]:
    """Return what lines say beyond what was booked before, so that nothing is booked twice.

    Args:
        lines: All that is known now.
        booked: What an earlier look booked of the same rounds; lines of other rounds do not count.

    Returns:
        The lines that are new, and of those that grew the rest.
    """
    before: Counter[tuple[object, ...]] = Counter()
    for line in booked:
        before[_same(line)] += line.num_bytes
    new = []
    for line in lines:
        known = min(before[_same(line)], line.num_bytes)
        before[_same(line)] -= known
        if line.num_bytes > known:
            new.append(msgspec.structs.replace(line, num_bytes=line.num_bytes - known))
    return new


def of_round(lines: Iterable[LedgerLine], round_index: int) -> list[LedgerLine]:
    """Return a round's lines with those that do not say for which round they are taken for its own.

    Args:
        lines: As the round's record has them, perhaps from before lines said so.
        round_index: The round.
    """
    return [msgspec.structs.replace(line, round_index=line.round_index or round_index) for line in lines]


def _same(line: LedgerLine) -> tuple[object, ...]:
    return line.round_index, line.client_id, line.attempt, line.direction, line.what


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

    The counterfactuals move one payload for every share and every update on the bill, those of 0 bytes included: all
    weights of the base model (full fine-tuning), everyone at the largest rank, or the clients' own ranks without a
    codec. None of them repeats a transfer.

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
        if (line.direction, line.what) in {("downlink", "share"), ("uplink", "update")}:
            totals["full_fine_tuning_bytes"] += FLOAT32_BYTES * full_parameters
            totals["max_rank_bytes"] += FLOAT32_BYTES * max_rank_parameters
            totals["no_codec_bytes"] += FLOAT32_BYTES * own_rank_parameters[line.client_id]
    return totals


def moved_bytes(totals: Mapping[str, int]) -> int:
    """Return what moved both ways [bytes].

    Args:
        totals: As `round_totals` returns them; none yet is 0.
    """
    return totals.get("uplink_bytes", 0) + totals.get("downlink_bytes", 0)


def saved_fraction(totals: Mapping[str, int], against: str) -> float:
    """Return which part of a counterfactual's bytes was not moved; negative when more was moved.

    Args:
        totals: As `round_totals` returns them.
        against: One of `COUNTERFACTUALS`.
    """
    other = totals.get(f"{against}_bytes", 0)
    return 1.0 - moved_bytes(totals) / other if other else 0.0
