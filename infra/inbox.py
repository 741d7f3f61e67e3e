"""A round's inbox: finds uploads in the store, admits or refuses each, and books what moved."""

from dataclasses import dataclass, field
from functools import cached_property

from msgspec.structs import replace

from infra.booking import booked, read_claim
from infra.object_store import ObjectStore
from infra.round_reader import RoundReader
from infra.run_store import find_record, quarantine
from tasks.adapters.admission import admit
from tasks.adapters.products import adapter_distance
from tasks.errors import RankweaveError, RecordFormatError, Transient, UpdateRefusedError
from tasks.rounds import keys
from tasks.rounds.admission import admit_manifest, check_update_size
from tasks.rounds.exchange import Exchange
from tasks.rounds.keys import RoundKeys
from tasks.rounds.ledger import LedgerLine, exceeding, of_round
from tasks.rounds.records import (
    Acceptance,
    ClientFailure,
    Collection,
    Invitation,
    Refusal,
    RoundPlan,
    UpdateManifest,
    decode,
    sha256,
)

_REASONS = {
    "IntegrityError": "altered",
    "ObjectNotFoundError": "incomplete",
    "NonFiniteUpdateError": "non-finite",
}
MAX_WORDS = 2000
"""Refusals quote clients; what they say is cut to this length."""


@dataclass
class Inbox:
    """What has come in so far; grows while the round waits.

    Args:
        store: Where clients upload.
        plan: Who was invited to what.
        exchange: What of an adapter is sent, in which encoding, and what a client knows without.
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
        lines = [*late_lines, *booked(self.store, self.plan)]
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

    @cached_property
    def _reader(self) -> RoundReader:
        return RoundReader(self.store, self.plan, self.exchange)

    def _take(self, invitation: Invitation, attempt: int) -> None:
        client = invitation.client_id
        # Read outside the try: a damaged share is the server's own fault, no client's.
        self._reader.start(invitation)
        try:
            self.accepted[client] = self._admit(invitation, attempt)
        except RankweaveError as error:
            if isinstance(error, Transient):  # the store's fault, not the client's: the step is retried
                raise
            self._reader.held(invitation)  # if that is damaged, the fault is the server's again
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
        claim = read_claim(self.store, manifest_key)
        manifest = decode(UpdateManifest, claim, manifest_key)
        admit_manifest(manifest, self.plan, invitation, attempt)
        start = self._reader.start(invitation, manifest.rank)
        if not manifest.skipped:
            update_key = self.keys.uplink(client, attempt, keys.UPDATE)
            check_update_size(self.store.size(update_key) or 0, start, subject)
        acceptance = Acceptance(
            client_id=client,
            attempt=attempt,
            rank=manifest.rank or invitation.rank,
            lowered=manifest.lowered,
            batch_size=manifest.batch_size,
            capability=manifest.capability,
            manifest_sha256=sha256(claim),
            update_sha256=manifest.update_sha256,
            num_examples=manifest.num_examples,
            update_norm=0.0,
            training_s=manifest.training_s,
            metrics=manifest.metrics,
            held_sha256=manifest.held_sha256,
            skipped=manifest.skipped,
        )
        update = admit(self._reader.update(acceptance), start, subject=subject)
        return replace(acceptance, update_norm=adapter_distance(update, start))

    def _take_failure(self, client: str, attempt: int) -> None:
        """Believe the key, not the words, about who failed: the words are the client's."""
        key = self.keys.uplink(client, attempt, keys.FAILURE)
        try:
            failure = decode(ClientFailure, read_claim(self.store, key), key)
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
        lines = exceeding(booked(self.store, plan), of_round(fixed.ledger, before.round_index))
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


def _reason(error: RankweaveError) -> str:
    if isinstance(error, UpdateRefusedError):
        return error.reason
    return _REASONS.get(type(error).__name__, "unreadable")
