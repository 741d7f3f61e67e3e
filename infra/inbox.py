"""A round's inbox: finds uploads in the store, admits or refuses each, and books what moved."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from infra.object_store import ObjectStore
from infra.run_store import find_record, quarantine
from tasks.adapters.admission import admit
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.products import adapter_distance
from tasks.codecs.table import codec
from tasks.errors import ObjectNotFoundError, RankweaveError, RecordFormatError, Transient, UpdateRefusedError
from tasks.rounds import keys
from tasks.rounds.admission import admit_manifest, check_update_size
from tasks.rounds.exchange import Exchange
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import LedgerLine
from tasks.rounds.records import (
    Acceptance,
    ClientFailure,
    Collection,
    Invitation,
    Merge,
    Refusal,
    RoundPlan,
    UpdateManifest,
    check_digest,
    decode,
    encode,
    sha256,
)

_REASONS = {
    "IntegrityError": "altered",
    "ObjectNotFoundError": "incomplete",
    "NonFiniteUpdateError": "non-finite",
}
_WORDS = {keys.UPDATE: "update", keys.MANIFEST: "manifest", keys.FAILURE: "failure"}
MAX_RECORD_BYTES = 1024 * 1024
"""A manifest or a word of failure larger than this is none, and is not read to its end."""
MAX_WORDS = 2000
"""Refusals quote clients; what they say is cut to this length."""


@dataclass
class Inbox:
    """What has come in so far; grows while the round waits.

    Args:
        store: Where clients upload.
        plan: Who was invited to what.
        exchange: What of an adapter is sent, and what a client knows without.
    """

    store: ObjectStore
    plan: RoundPlan
    exchange: Exchange = field(default=Exchange())
    accepted: dict[str, Acceptance] = field(default_factory=dict)
    refused: dict[tuple[str, int], Refusal] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    @property
    def keys(self) -> RoundKeys:
        """The round's keys."""
        return RoundKeys(self.plan.run_id, self.plan.round_index)

    @property
    def num_answered(self) -> int:
        """Clients that sent an update, good or bad, or word that none will come."""
        return len(self._answered())

    def look(self) -> None:
        """Take in everything that has arrived since the last look; one listing, whatever the cohort."""
        invitations = {invitation.client_id: invitation for invitation in self.plan.invitations}
        for found in self.store.list(self.keys.uplinks):
            parsed = self.keys.parse_uplink(found.key)
            if found.key in self._seen or parsed is None or parsed[0] not in invitations:
                continue
            client, attempt, name = parsed
            if name == keys.MANIFEST and client not in self.accepted:
                self._take(invitations[client], attempt)
            elif name == keys.FAILURE:
                self._take_failure(client, attempt)
            if name in {keys.MANIFEST, keys.FAILURE}:
                self._seen.add(found.key)

    def close(self) -> Collection:
        """Say who counts, who does not and who never answered."""
        invited = {invitation.client_id for invitation in self.plan.invitations}
        late, late_lines = self._late()
        lines = [*late_lines, *_booked(self.store, self.plan)]
        counted = {(acceptance.client_id, acceptance.attempt) for acceptance in self.accepted.values()}
        return Collection(
            accepted=tuple(self.accepted[client] for client in sorted(self.accepted)),
            # A client that lost the answer to its manifest may have called its own accepted attempt a failure.
            refused=(*late, *(self.refused[key] for key in sorted(self.refused.keys() - counted))),
            missing=tuple(sorted(invited - self._answered())),
            ledger=tuple(sorted(lines, key=lambda line: (line.client_id, line.attempt, line.direction, line.what))),
        )

    def _answered(self) -> set[str]:
        return {*self.accepted, *(client for client, _ in self.refused)}

    def _take(self, invitation: Invitation, attempt: int) -> None:
        client, share = invitation.client_id, self.plan.share_of(invitation)
        # Read outside the try: a damaged share is the server's own fault, no client's.
        message = check_digest(self.store.get(share.key), share.sha256, share.key)
        sent = codec(self.plan.downlink_codec).decode(message, None)
        try:
            self.accepted[client] = self._admit(invitation, attempt, sent)
        except RankweaveError as error:
            if isinstance(error, Transient):  # the store's fault, not the client's: the step is retried
                raise
            self._refuse(self.keys, client, attempt, _reason(error), str(error))

    def _refuse(self, round_keys: RoundKeys, client: str, attempt: int, reason: str, detail: str) -> Refusal:
        reason, detail = reason[:MAX_WORDS], detail[:MAX_WORDS]
        refusal = Refusal(
            client_id=client,
            round_index=round_keys.round_index,
            attempt=attempt,
            reason=reason,
            detail=detail,
        )
        if round_keys.round_index == self.plan.round_index:
            self.refused[client, attempt] = refusal
        quarantine(self.store, round_keys.quarantine(client, attempt), reason, detail)
        return refusal

    def _admit(self, invitation: Invitation, attempt: int, share: LoraAdapter) -> Acceptance:
        client = invitation.client_id
        subject = f"client {client}, round {self.plan.round_index}"
        manifest_key = self.keys.uplink(client, attempt, keys.MANIFEST)
        claim = _read_record(self.store, manifest_key)
        manifest = decode(UpdateManifest, claim, manifest_key)
        admit_manifest(manifest, self.plan, invitation, attempt)
        start = self.exchange.start(self.plan, invitation, share, manifest.rank)
        update_key = self.keys.uplink(client, attempt, keys.UPDATE)
        check_update_size(self.store.size(update_key) or 0, start, subject)
        data = check_digest(self.store.get(update_key), manifest.update_sha256, update_key)
        sent = codec(self.plan.uplink_codec).decode(data, start)
        update = admit(self.exchange.update(sent, start, subject), start, subject=subject)
        return Acceptance(
            client_id=client,
            attempt=attempt,
            rank=manifest.rank or invitation.rank,
            lowered=manifest.lowered,
            batch_size=manifest.batch_size,
            capability=manifest.capability,
            manifest_sha256=sha256(claim),
            update_sha256=manifest.update_sha256,
            num_examples=manifest.num_examples,
            update_norm=adapter_distance(update, start),
            training_s=manifest.training_s,
            metrics=manifest.metrics,
        )

    def _take_failure(self, client: str, attempt: int) -> None:
        """Believe the key, not the words, about who failed: the words are the client's."""
        key = self.keys.uplink(client, attempt, keys.FAILURE)
        try:
            failure = decode(ClientFailure, _read_record(self.store, key), key)
        except (RecordFormatError, UpdateRefusedError) as error:
            self._refuse(self.keys, client, attempt, _reason(error), str(error))
        else:
            self._refuse(self.keys, client, attempt, failure.reason, failure.detail)

    def _late(self) -> tuple[tuple[Refusal, ...], list[LedgerLine]]:
        """Name and book what arrived for the round before after its collection had been fixed."""
        before = RoundKeys(self.plan.run_id, self.plan.round_index - 1)
        fixed = find_record(self.store, before.collection, Collection)
        plan = find_record(self.store, before.plan, RoundPlan)
        if fixed is None or plan is None:
            return (), []
        # Merges are booked once an attempt: a manifest that came late may say less than was booked without it.
        merged = {(line.client_id, line.attempt) for line in fixed.ledger if line.what == "merge"}
        lines = [
            line
            for line in _booked(self.store, plan)
            if line not in fixed.ledger and not (line.what == "merge" and (line.client_id, line.attempt) in merged)
        ]
        late = [
            self._refuse(
                before,
                line.client_id,
                line.attempt,
                "late",
                f"client {line.client_id}, round {before.round_index}: update arrived after the round was closed",
            )
            for line in lines
            if line.what == "manifest" and line.client_id in fixed.missing
        ]
        return tuple(late), lines


def _booked(store: ObjectStore, plan: RoundPlan) -> list[LedgerLine]:
    """Book every object that lies under a round's uplink, and one plan and one share for each attempt behind it.

    Whether it counted does not matter: refused, repeated and orphaned uploads crossed the link as well.
    """
    round_keys = RoundKeys(plan.run_id, plan.round_index)
    invitations = {invitation.client_id: invitation for invitation in plan.invitations}
    plan_bytes, lines, attempts = len(encode(plan)), [], set()
    for found in store.list(round_keys.uplinks):
        parsed = round_keys.parse_uplink(found.key)
        if parsed is None or parsed[0] not in invitations:
            continue
        client, attempt, name = parsed
        attempts.add((client, attempt))
        lines.append(_line(client, attempt, "uplink", _WORDS.get(name, "other"), found.size))
    for client, attempt in attempts:
        lines.append(_line(client, attempt, "downlink", "plan", plan_bytes))
        share = plan.share_of(invitations[client])
        lines.append(_line(client, attempt, "downlink", "share", share.num_bytes))
        if merges := plan.merges_of(invitations[client]):
            fetched = _fetched(store, round_keys.uplink(client, attempt, keys.MANIFEST), merges)
            lines.append(_line(client, attempt, "downlink", "merge", fetched))
    return lines


def _fetched(store: ObjectStore, manifest_key: str, merges: tuple[Merge, ...]) -> int:
    """Count the bytes of the merges that an attempt had to download; all of them where it left no word about that."""
    rounds = {merge.round_index for merge in merges}
    with suppress(ObjectNotFoundError, RecordFormatError, UpdateRefusedError):  # then booked at most, never too low
        rounds &= set(decode(UpdateManifest, _read_record(store, manifest_key), manifest_key).fetched)
    return sum(merge.num_bytes for merge in merges if merge.round_index in rounds)


def _read_record(store: ObjectStore, key: str) -> bytes:
    data = store.get_range(key, 0, MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise UpdateRefusedError(
            key, "is too large to be a record", reason="too-large", expected=f"at most {MAX_RECORD_BYTES} bytes"
        )
    return data


def _line(client: str, attempt: int, direction: Literal["uplink", "downlink"], what: str, num_bytes: int) -> LedgerLine:
    return LedgerLine(client_id=client, attempt=attempt, direction=direction, what=what, num_bytes=num_bytes)


def _reason(error: RankweaveError) -> str:
    if isinstance(error, UpdateRefusedError):
        return error.reason
    return _REASONS.get(type(error).__name__, "unreadable")
