"""A round's inbox: finds uploads in the store, admits or refuses each, and books what moved."""

from dataclasses import dataclass, field
from typing import Literal

from infra.object_store import ObjectStore
from infra.run_store import find_record, quarantine
from tasks.adapters.admission import admit
from tasks.adapters.products import adapter_distance
from tasks.codecs.table import codec
from tasks.errors import RankweaveError, RecordFormatError, Transient, UpdateRefusedError
from tasks.rounds import keys
from tasks.rounds.admission import admit_manifest, check_update_size
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import LedgerLine
from tasks.rounds.records import (
    Acceptance,
    ClientFailure,
    Collection,
    Invitation,
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
    """

    store: ObjectStore
    plan: RoundPlan
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
        return Collection(
            accepted=tuple(self.accepted[client] for client in sorted(self.accepted)),
            refused=(*self._late(), *(self.refused[key] for key in sorted(self.refused))),
            missing=tuple(sorted(invited - self._answered())),
            ledger=self._ledger(),
        )

    def _answered(self) -> set[str]:
        return {*self.accepted, *(client for client, _ in self.refused)}

    def _take(self, invitation: Invitation, attempt: int) -> None:
        client = invitation.client_id
        try:
            self.accepted[client] = self._admit(invitation, attempt)
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

    def _admit(self, invitation: Invitation, attempt: int) -> Acceptance:
        client = invitation.client_id
        subject = f"client {client}, round {self.plan.round_index}"
        manifest_key = self.keys.uplink(client, attempt, keys.MANIFEST)
        claim = self._read_record(manifest_key)
        manifest = decode(UpdateManifest, claim, manifest_key)
        admit_manifest(manifest, self.plan, invitation, attempt)
        share = self.plan.share_of(invitation)
        message = check_digest(self.store.get(share.key), share.sha256, share.key)
        start = codec(self.plan.downlink_codec).decode(message, None)
        update_key = self.keys.uplink(client, attempt, keys.UPDATE)
        check_update_size(self.store.size(update_key) or 0, start, subject)
        data = check_digest(self.store.get(update_key), manifest.update_sha256, update_key)
        update = admit(codec(self.plan.uplink_codec).decode(data, start), start, subject=subject)
        return Acceptance(
            client_id=client,
            attempt=attempt,
            rank=invitation.rank,
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
            failure = decode(ClientFailure, self._read_record(key), key)
        except (RecordFormatError, UpdateRefusedError) as error:
            self._refuse(self.keys, client, attempt, _reason(error), str(error))
        else:
            self._refuse(self.keys, client, attempt, failure.reason, failure.detail)

    def _read_record(self, key: str) -> bytes:
        data = self.store.get_range(key, 0, MAX_RECORD_BYTES + 1)
        if len(data) > MAX_RECORD_BYTES:
            raise UpdateRefusedError(
                key, "is too large to be a record", reason="too-large", expected=f"at most {MAX_RECORD_BYTES} bytes"
            )
        return data

    def _ledger(self) -> tuple[LedgerLine, ...]:
        """Book every object that lies under the round's uplink, and one plan and one share for each attempt behind it.

        Whether it counted does not matter: refused, repeated and orphaned uploads crossed the link as well.
        """
        invitations = {invitation.client_id: invitation for invitation in self.plan.invitations}
        plan_bytes, lines, attempts = len(encode(self.plan)), [], set()
        for found in self.store.list(self.keys.uplinks):
            parsed = self.keys.parse_uplink(found.key)
            if parsed is None or parsed[0] not in invitations:
                continue
            client, attempt, name = parsed
            attempts.add((client, attempt))
            lines.append(_line(client, attempt, "uplink", _WORDS.get(name, "other"), found.size))
        for client, attempt in attempts:
            lines.append(_line(client, attempt, "downlink", "plan", plan_bytes))
            share = self.plan.share_of(invitations[client])
            lines.append(_line(client, attempt, "downlink", "share", share.num_bytes))
        return tuple(sorted(lines, key=lambda line: (line.client_id, line.attempt, line.direction, line.what)))

    def _late(self) -> tuple[Refusal, ...]:
        """Name clients that answered the round before after it had been fixed without them."""
        before = RoundKeys(self.plan.run_id, self.plan.round_index - 1)
        fixed = find_record(self.store, before.collection, Collection)
        if fixed is None or not fixed.missing:
            return ()
        late = []
        for found in self.store.list(before.uplinks):
            parsed = before.parse_uplink(found.key)
            if parsed is not None and parsed[2] == keys.MANIFEST and parsed[0] in fixed.missing:
                client, attempt, _ = parsed
                detail = f"client {client}, round {before.round_index}: update arrived after the round was closed"
                late.append(self._refuse(before, client, attempt, "late", detail))
        return tuple(late)


def _line(client: str, attempt: int, direction: Literal["uplink", "downlink"], what: str, num_bytes: int) -> LedgerLine:
    return LedgerLine(client_id=client, attempt=attempt, direction=direction, what=what, num_bytes=num_bytes)


def _reason(error: RankweaveError) -> str:
    if isinstance(error, UpdateRefusedError):
        return error.reason
    return _REASONS.get(type(error).__name__, "unreadable")
