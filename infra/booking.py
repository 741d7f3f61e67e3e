"""What of a round crossed the link between clients and the bucket, read from what lies there and what clients say.

Uploads lie in the store. What was downloaded, and what moved more than once, only the client knows: its manifest or
its word of failure tells, and is believed within bounds. Not booked are HTTP headers, listings and error answers, a
client that ended without leaving anything, and the server's own traffic with the bucket. Not here: what the lines add
up to (`tasks.rounds.ledger`), and whether an update counts (`inbox`).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from msgspec.structs import replace

from infra.object_store import ObjectStore
from infra.run_store import find_record
from tasks.errors import ObjectNotFoundError, RecordFormatError, UpdateRefusedError
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import Direction, LedgerLine, kind_of
from tasks.rounds.records import (
    ClientFailure,
    FusionReport,
    Invitation,
    RoundPlan,
    RoundRecord,
    Share,
    UpdateManifest,
    decode,
    encode,
)

MAX_RECORD_BYTES = 1024 * 1024
"""A manifest or a word of failure larger than this is none, and is not read to its end."""
MOST_REPEATS = 16
"""No client is believed that it moved an object more often: four tries of a step, each with a few repeats."""

_Word = UpdateManifest | ClientFailure
_Amount = tuple[Direction, str, int]


def booked(store: ObjectStore, plan: RoundPlan) -> list[LedgerLine]:
    """Book what every attempt moved that left anything under a round's uplink.

    Whether it counted does not matter: refused, repeated and orphaned uploads crossed the link as well.

    Args:
        store: Where clients upload.
        plan: The round's plan.

    Returns:
        One line for each attempt, direction and kind of object.

    Invariants:
        Uploads are never booked below their size in the store, downloads never below one plan and one share, and
        neither above `MOST_REPEATS` times that. An attempt that says nothing is booked all merges of the plan.
    """
    round_keys = RoundKeys(plan.run_id, plan.round_index)
    invitations = {invitation.client_id: invitation for invitation in plan.invitations}
    sizes: dict[tuple[str, int], dict[str, int]] = {}
    for found in store.list(round_keys.uplinks):
        parsed = round_keys.parse_uplink(found.key)
        if parsed is not None and parsed[0] in invitations:
            client, attempt, _ = parsed
            lying = sizes.setdefault((client, attempt), {})
            lying[kind_of(found.key)] = lying.get(kind_of(found.key), 0) + found.size
    desk = _Desk(store, plan)
    return [
        LedgerLine(
            client_id=client,
            attempt=attempt,
            direction=direction,
            what=what,
            num_bytes=num_bytes,
            round_index=plan.round_index,
        )
        for (client, attempt), lying in sizes.items()
        for direction, what, num_bytes in desk.amounts(invitations[client], attempt, lying)
    ]


def booked_fusions(store: ObjectStore, last: RoundRecord) -> list[LedgerLine]:
    """Book what clients moved after the run, to evaluate the global adapter and join it with their own.

    Args:
        store: Where they left their reports.
        last: The run's last record.

    Returns:
        Lines of its round; a search that was tried more than once is booked once.
    """
    lines = []
    for client in sorted(last.ranks):
        report = find_record(store, keys.fusion(last.run_id, client), FusionReport)
        if report is not None:
            line = LedgerLine(
                client_id=client,
                attempt=1,
                direction="uplink",
                what="fusion",
                num_bytes=len(encode(report)),
                round_index=last.round_index,
            )
            came = sorted(report.downloaded.items())
            lines += [line, *(replace(line, direction="downlink", what=kind, num_bytes=size) for kind, size in came)]
    return lines


def read_claim(store: ObjectStore, key: str) -> bytes:
    """Read what a client wrote about itself, to a bound.

    Args:
        store: Where it lies.
        key: Its key.

    Raises:
        ObjectNotFoundError: The key holds no object.
        UpdateRefusedError: It is larger than `MAX_RECORD_BYTES`.
    """
    data = store.get_range(key, 0, MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise UpdateRefusedError(
            key, "is too large to be a record", reason="too-large", expected=f"at most {MAX_RECORD_BYTES} bytes"
        )
    return data


@dataclass
class _Desk:
    """Bounds what the clients of one round say."""

    store: ObjectStore
    plan: RoundPlan

    def amounts(self, invitation: Invitation, attempt: int, lying: Mapping[str, int]) -> list[_Amount]:
        """Return (direction, kind, bytes) of one attempt; 0 bytes for a share or an update that was not needed."""
        words = list(self._words(invitation.client_id, attempt, lying))
        up, down = _most_told(word.uploaded for word in words), _most_told(word.downloaded for word in words)
        amounts: list[_Amount] = [
            ("uplink", kind, _within(up.get(kind, 0), size, size)) for kind, size in lying.items()
        ]
        if "update" not in lying and any(isinstance(word, UpdateManifest) and word.skipped for word in words):
            amounts.append(("uplink", "update", 0))
        # What it wrote itself it may have read again, to see whether an earlier try had been there.
        bounds = {kind: (0, size) for kind, size in lying.items()} | self._bounds(invitation, words, told=bool(down))
        came: list[_Amount] = [("downlink", kind, _within(down.get(kind, 0), *of)) for kind, of in bounds.items()]
        return [*amounts, *(amount for amount in came if amount[2] or amount[1] == "share")]

    def _words(self, client: str, attempt: int, lying: Mapping[str, int]) -> Iterable[_Word]:
        round_keys = RoundKeys(self.plan.run_id, self.plan.round_index)
        for name, kind in ((keys.MANIFEST, UpdateManifest), (keys.FAILURE, ClientFailure)):
            key = round_keys.uplink(client, attempt, name)
            if kind_of(key) in lying:
                with suppress(ObjectNotFoundError, RecordFormatError, UpdateRefusedError):
                    yield decode(kind, read_claim(self.store, key), key)

    def _bounds(self, invitation: Invitation, words: list[_Word], *, told: bool) -> dict[str, tuple[int, int]]:
        """Return kind -> (the least that was downloaded, its size)."""
        plan_bytes = len(encode(self.plan.part_of(invitation)))
        runs_alone = invitation.pool != "inline"
        sizes = {
            "run": (self._run_bytes if runs_alone and not told else 0, self._run_bytes),
            "plan": (plan_bytes, plan_bytes),
            "share": _share(self.plan.share_of(invitation), told=told),
        }
        if merges := self.plan.merges_of(invitation):
            whole = sum(merge.num_bytes for merge in merges)
            fetched = [set(word.fetched) for word in words if isinstance(word, UpdateManifest)]
            rounds = set().union(*fetched)
            named = sum(merge.num_bytes for merge in merges if merge.round_index in rounds)
            sizes["merge"] = (named if fetched or told else whole, whole)
        return sizes

    @cached_property
    def _run_bytes(self) -> int:
        return self.store.size(keys.run_spec(self.plan.run_id)) or 0


def _share(share: Share, *, told: bool) -> tuple[int, int]:
    """Return the least that a client downloads of its share, and the most in one go: a step, then the whole."""
    step = share.step.num_bytes if share.step else 0
    whole = 0 if share.drawn else share.num_bytes
    return min(step, whole) if step and told else whole, share.num_bytes + step


def _most_told(words: Iterable[Mapping[str, int]]) -> dict[str, int]:
    most: dict[str, int] = {}
    for word in words:
        most |= {kind: max(count, most.get(kind, 0)) for kind, count in word.items()}
    return most


def _within(told: int, least: int, size: int) -> int:
    """Believe a client between the least that must have moved and `MOST_REPEATS` times the size."""
    return max(least, min(told, MOST_REPEATS * size))
