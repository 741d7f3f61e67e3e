"""What the server and its clients write down about a run: plain values, canonical JSON, nothing that computes.

Records are `msgspec` structs: frozen, strict about unknown fields and types (manifests come from outside), with keys
sorted on encoding so that equal records have equal bytes and therefore equal digests.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from tasks.errors import IntegrityError, RecordFormatError
from tasks.rounds.capabilities import Capability, Limit
from tasks.rounds.keys import GLOBAL
from tasks.rounds.knowledge import ClientKnowledge
from tasks.rounds.ledger import LedgerLine

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Outcome = Literal["initial", "committed", "degraded", "failed"]
Lowered = Literal["", "memory", "pruned"]

TRAINED: tuple[Outcome, ...] = ("committed", "degraded")
"""Outcomes of a round that made a new global adapter."""

R = TypeVar("R", bound="Record")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything written as JSON."""


class RunSpec(Record, frozen=True, kw_only=True):
    """A run as it was started; never changes.

    Args:
        run_id: The run.
        config: The full experiment config.
        base_digest: SHA-256 of the base model's weights.
        code_version: Version of Rankweave that started it.
        created_at: When, ISO 8601 in UTC.
    """

    run_id: str
    config: dict[str, Any]
    base_digest: Digest
    code_version: str
    created_at: str


class Merge(Record, frozen=True, kw_only=True):
    """What every client puts into its base model after a round, where the method says so.

    Args:
        round_index: The round that made it.
        key: Its object.
        sha256: Its digest.
        num_bytes: Its size [bytes].
        whole: It is a whole model, which replaces the base model's tensors and is no part of the adapter.
    """

    round_index: int
    key: str
    sha256: Digest
    num_bytes: Count
    whole: bool = False


class GlobalModel(Record, frozen=True, kw_only=True):
    """One global adapter: the run's only one, or that of a cluster of clients.

    Args:
        sha256: Digest of its weights file.
        round_index: The round whose key holds it (an earlier one when the last round did not change it).
        folder: The name it was written under in that round: its own, or that of the model it came from.
        version: Registered version, 0 when none was published.
        merges: Rounds whose merge is part of it, or of the base it stands on, oldest first; a client that was away
            catches up from these.
        slots_round: The last round whose plan cut it, so that each of its slots is another one since; 0 for none.
    """

    sha256: Digest
    round_index: int
    folder: str = GLOBAL
    version: int = 0
    merges: tuple[Merge, ...] = ()
    slots_round: int = 0


class Step(Record, frozen=True, kw_only=True):
    """What leads from the share of the round before to this one, for clients that still hold that.

    Args:
        key: Its object.
        sha256: Its digest.
        num_bytes: Its size [bytes].
        reference: Digest of the share it starts from.
    """

    key: str
    sha256: Digest
    num_bytes: Count
    reference: Digest


class Share(Record, frozen=True, kw_only=True):
    """What clients of one rank download.

    Args:
        key: Its object.
        sha256: Its digest.
        num_bytes: Its size [bytes].
        ranks: Module path -> rank.
        exact: It is written without loss, whatever the plan's codec: clients can tell by its digest whether what they
            drew or put together is the same.
        drawn: It follows from the config and the base model: clients draw it themselves, and need not download it.
        step: The way to it from the share before; None where there is none.
        moved: Squared lengths of its last changes, the newest first, where lazy clients compare theirs with them.
    """

    key: str
    sha256: Digest
    num_bytes: Count
    ranks: dict[str, int]
    exact: bool = False
    drawn: bool = False
    step: Step | None = None
    moved: tuple[float, ...] = ()


class Held(Record, frozen=True, kw_only=True):
    """The last step that the server got of a lazy client, which counts again when the client skips.

    Args:
        round_index: The round that brought it.
        sha256: Digest of the step, as both ends encode it.
        rank: The rank it was trained at.
        model: The global adapter it was trained for.
        skips: Rounds in a row in which it counted again.
    """

    round_index: int
    sha256: Digest
    rank: int
    model: str = GLOBAL
    skips: int = 0


class Invitation(Record, frozen=True, kw_only=True):
    """One client's part in a round.

    Args:
        client_id: Who.
        rank: Its rank, which names its share.
        nonce: What its update must repeat.
        pool: Work pool that runs it, "inline" for the server's own process.
        model: Which global adapter its share is cut from.
        batch_size: Largest batch that it is known to hold in memory; 0 for the config's own [examples].
        held: What the server still holds of it, on which it may rest; None for nothing.
    """

    client_id: str
    rank: int
    nonce: str
    pool: str
    model: str = GLOBAL
    batch_size: int = 0
    held: Held | None = None

    @property
    def share_name(self) -> str:
        """Under which name the plan lists its share: clients of one model and rank have one."""
        return f"{self.model}/{self.rank}"


class RoundPlan(Record, frozen=True, kw_only=True):
    """A round as it was planned.

    Args:
        run_id: The run.
        round_index: The round.
        base_digest: The base model all clients must hold.
        models: Model name -> digest of the global adapter its shares were cut from.
        invitations: One per client, by client id.
        shares: "<model>/<rank>" -> what clients of that model and rank download.
        merges: Model name -> what its clients have to add to their base; empty for methods that keep the base.
        cuts: Model name -> its global adapter at the ranks that clients have now, where they changed; from this one
            shares were cut, and aggregation goes on.
        slots_rounds: Model name -> the first round with the slots it has now; models that kept theirs are not named.
            What clients kept of earlier rounds says nothing about these slots.
        rounds_done: Rounds before this one that made a new global adapter.
        equal_ranks: Nobody may come back with a lower rank than it was sent.
        uplink_codec: How updates are encoded.
        downlink_codec: How shares are encoded.
        cohort_size: Accepted updates wanted: the round ends as soon as it has them. Overshoot invites more clients.
        quorum: Fewest accepted updates for a valid round.
        deadline_s: How long the server waits from the plan on [s].
        quality_metric: Metric that every manifest must carry because weights rest on it; empty for none.
    """

    run_id: str
    round_index: int
    base_digest: Digest
    models: dict[str, Digest]
    invitations: tuple[Invitation, ...]
    shares: dict[str, Share]
    merges: dict[str, tuple[Merge, ...]] = {}
    cuts: dict[str, GlobalModel] = {}
    slots_rounds: dict[str, int] = {}
    rounds_done: int = 0
    equal_ranks: bool = False
    uplink_codec: str
    downlink_codec: str
    cohort_size: int
    quorum: int
    deadline_s: float
    quality_metric: str = ""

    def share_of(self, invitation: Invitation) -> Share:
        """Return what this client downloads."""
        return self.shares[invitation.share_name]

    def part_of(self, invitation: Invitation) -> "RoundPlan":
        """Return what of the plan concerns one client, and nothing of the others but how many are wanted."""
        return msgspec.structs.replace(
            self,
            invitations=(invitation,),
            models={invitation.model: self.models[invitation.model]},
            shares={invitation.share_name: self.share_of(invitation)},
            merges={name: merges for name, merges in self.merges.items() if name == invitation.model},
            cuts={name: cut for name, cut in self.cuts.items() if name == invitation.model},
            slots_rounds={name: since for name, since in self.slots_rounds.items() if name == invitation.model},
        )

    def merges_of(self, invitation: Invitation) -> tuple[Merge, ...]:
        """Return what this client's base has to hold, oldest first."""
        return self.merges.get(invitation.model, ())


class UpdateManifest(Record, frozen=True, kw_only=True):
    """A client's claim about its update, written last: it is the commit of the upload.

    Args:
        run_id: The run.
        round_index: The round.
        client_id: Who.
        attempt: Which try, from 1.
        nonce: Repeats the invitation's.
        base_digest: The base model it trained on.
        share_sha256: The share it started from.
        update_sha256: Digest of its update's bytes; of the step that the server holds, where it skips.
        update_bytes: Their size [bytes].
        held_sha256: The held step that its message goes on from; empty when it starts afresh.
        skipped: It sends nothing: what the server holds of it still stands.
        num_examples: What its weight rests on.
        num_steps: Optimiser steps taken.
        training_s: Time in the training loop [s].
        metrics: Its own figures, e.g. loss and validation accuracy.
        fetched: Rounds whose merge it had to download, because it did not hold them yet.
        rank: Rank it trained at, where that is lower than it was invited to; 0 for the invitation's.
        lowered: Why it is lower: it did not fit into "memory", or the client "pruned" it.
        batch_size: Batch it trained with, where memory did not hold the configured one; 0 for that one [examples].
        capability: What it measured of its machine.
        downloaded: Kind of object -> bytes that it downloaded for this attempt, repeats included [bytes].
        uploaded: Kind of object -> bytes that it uploaded before this manifest, repeats included [bytes].
    """

    run_id: str
    round_index: int
    client_id: str
    attempt: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    nonce: str
    base_digest: Digest
    share_sha256: Digest
    update_sha256: Digest
    update_bytes: Count
    num_examples: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    num_steps: Count
    training_s: float
    metrics: dict[str, float]
    fetched: tuple[int, ...] = ()
    rank: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    lowered: Lowered = ""
    batch_size: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    capability: Capability = Capability()
    downloaded: dict[str, Count] = {}
    uploaded: dict[str, Count] = {}
    held_sha256: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    skipped: bool = False


class ClientFailure(Record, frozen=True, kw_only=True):
    """A client's word that it will send no update.

    Args:
        client_id: Who.
        attempt: Which try.
        reason: Name of the error.
        detail: Its message.
        downloaded: Kind of object -> bytes that it downloaded for this attempt, repeats included [bytes].
        uploaded: Kind of object -> bytes that it uploaded before this word, repeats included [bytes].
    """

    client_id: str
    attempt: int
    reason: str
    detail: str
    downloaded: dict[str, Count] = {}
    uploaded: dict[str, Count] = {}


class Acceptance(Record, frozen=True, kw_only=True):
    """An update that counts.

    Args:
        client_id: Who.
        attempt: Which of its tries.
        rank: Rank of the update.
        lowered: Why that is below the rank it was invited to; empty when it is not.
        batch_size: Batch it trained with, where memory did not hold the configured one; 0 for that one [examples].
        capability: What it measured of its machine.
        manifest_sha256: Digest of its manifest.
        update_sha256: Digest of its update.
        num_examples: Examples it trained on.
        update_norm: Norm of the change it makes to its share, over products.
        training_s: Time in the training loop [s].
        metrics: Its own figures.
        held_sha256: The held step that its message goes on from, or that counts again; empty for none.
        skipped: It sent nothing; what was held of it counts again.
    """

    client_id: str
    attempt: int
    rank: int
    manifest_sha256: Digest
    update_sha256: Digest
    num_examples: int
    update_norm: float
    training_s: float
    metrics: dict[str, float]
    lowered: Lowered = ""
    batch_size: int = 0
    capability: Capability = Capability()
    held_sha256: str = ""
    skipped: bool = False


class Refusal(Record, frozen=True, kw_only=True):
    """An update that does not count, and why.

    Args:
        client_id: Who.
        round_index: The round it was for.
        attempt: Which try.
        reason: Short name, e.g. "non-finite", "late", "wrong-rank".
        detail: The whole sentence.
    """

    client_id: str
    round_index: int
    attempt: int
    reason: str
    detail: str


class Collection(Record, frozen=True, kw_only=True):
    """What came in, fixed before aggregation so that a resumed round aggregates the same updates.

    Args:
        accepted: Updates that count, by client id.
        refused: Updates and clients that do not, late ones of the round before included.
        missing: Invited clients that never answered.
        ledger: Every object that moved.
    """

    accepted: tuple[Acceptance, ...]
    refused: tuple[Refusal, ...]
    missing: tuple[str, ...]
    ledger: tuple[LedgerLine, ...]


class Clustering(Record, frozen=True, kw_only=True):
    """Which model each client belongs to, fixed before aggregation.

    Args:
        labels: Client id -> model name, for every client seen so far.
        parents: Model name -> the model of the round before that it goes on from.
        similarities: (client, client, cosine) of updates, smoothed over the rounds.
        silhouette: How well the clusters are apart, -1 to 1; None where there is one, or all stand alone.
    """

    labels: dict[str, str]
    parents: dict[str, str]
    similarities: tuple[tuple[str, str, float], ...] = ()
    silhouette: float | None = None


class RankChange(Record, frozen=True, kw_only=True):
    """One decision of the rank scheduler.

    Args:
        client_id: Whose rank.
        old: Before.
        new: From the next round on.
        reason: Why.
    """

    client_id: str
    old: int
    new: int
    reason: str


class RoundRecord(Record, frozen=True, kw_only=True):
    """A round as it ended: the commit point, chained to the record before it.

    Args:
        run_id: The run.
        round_index: The round; 0 holds the initial adapter.
        outcome: How it ended.
        models: Model name -> global adapter after it.
        labels: Client id -> model name; empty when all clients share the one model.
        plan_sha256: Digest of the plan, empty for round 0.
        collection_sha256: Digest of the collection, empty for round 0.
        previous_sha256: Digest of the record before, empty for round 0.
        collection: Who counted, who did not.
        weights: Client id -> share of the aggregate.
        notes: Client id -> what a robust rule did to its update.
        ranks: Client id -> rank from the next round on.
        rounds_done: Rounds up to this one that made a new global adapter.
        rank_changes: What the scheduler changed since the global adapters were made: a failed round, which makes none,
            repeats those of the round before.
        capabilities: Client id -> what is known of its machine, smoothed over rounds.
        limits: Client id -> what it turned out not to manage.
        held: Client id -> the last step the server got of it, where clients are lazy.
        knowledge: Client id -> what it showed when its update was last accepted.
        distances: (client, client, distance of their updates, rounds they met in), where clients stand in for others.
        metrics: Evaluation of the global adapter.
        totals: Bytes of the run so far and of its counterfactuals.
    """

    run_id: str
    round_index: int
    outcome: Outcome
    models: dict[str, GlobalModel]
    labels: dict[str, str] = {}
    plan_sha256: str = ""
    collection_sha256: str = ""
    previous_sha256: str = ""
    collection: Collection = Collection(accepted=(), refused=(), missing=(), ledger=())
    weights: dict[str, float] = {}
    notes: dict[str, str] = {}
    ranks: dict[str, int]
    rounds_done: int = 0
    rank_changes: tuple[RankChange, ...] = ()
    capabilities: dict[str, Capability] = {}
    limits: dict[str, Limit] = {}
    held: dict[str, Held] = {}
    knowledge: dict[str, ClientKnowledge] = {}
    distances: tuple[tuple[str, str, float, int], ...] = ()
    metrics: dict[str, float] = {}
    totals: dict[str, int] = {}

    def model_of(self, client_id: str) -> str:
        """Return the name of the model that a client trains; a client nobody has seen joins the main one."""
        return self.labels.get(client_id, self.main)

    def as_cut(self, plan: RoundPlan) -> "RoundRecord":
        """Return this record with its global adapters as the next round's plan cut them, which that round goes on from.

        Args:
            plan: That plan.
        """
        return msgspec.structs.replace(self, models=self.models | plan.cuts)

    @property
    def main(self) -> str:
        """Name of the model that stands for the run: its only one, or that of the largest cluster."""
        sizes = Counter(self.labels.values())
        return max(sorted(self.models), key=lambda name: sizes[name])


class FusionReport(Record, frozen=True, kw_only=True):
    """What a client tells about joining its personal adapter with the global one; the adapter itself stays there.

    Args:
        run_id: The run.
        client_id: Who.
        form: How the two were joined: "cat", "svd" or "factors".
        personal_weight: Weight of its own adapter.
        shared_weight: Weight of the global one.
        evaluations: How many weights the search tried.
        metrics: "<personal|shared|fused>_<metric>" on its validation share.
        downloaded: Kind of object -> bytes that it downloaded for that [bytes].
    """

    run_id: str
    client_id: str
    form: str
    personal_weight: float
    shared_weight: float
    evaluations: int
    metrics: dict[str, float]
    downloaded: dict[str, Count] = {}


def rank_changes(
    before: Mapping[str, int], after: Mapping[str, int], reasons: Mapping[str, str]
) -> tuple[RankChange, ...]:
    """Write down what a decision changes, by client id.

    Args:
        before: Client id -> rank.
        after: Client id -> rank.
        reasons: Client id -> why it changed.
    """
    return tuple(
        RankChange(client_id=client, old=before[client], new=after[client], reason=reason)
        for client, reason in sorted(reasons.items())
    )


def encode(record: Record) -> bytes:
    """Encode a record as canonical JSON: keys sorted, so equal records have equal bytes."""
    return msgspec.json.encode(record, order="sorted")


def decode(kind: type[R], data: bytes, subject: str) -> R:
    """Decode a record, refusing anything that is not exactly one.

    Args:
        kind: Which record.
        data: Its JSON.
        subject: What to name in an error, usually the key.

    Raises:
        RecordFormatError: Not JSON, unknown or missing fields, wrong types or out of bounds.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordFormatError(subject, f"is not a {kind.__name__}: {error}") from error


def finite_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are numbers: JSON has no word for infinity, which a diverged model's perplexity is."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def sha256(data: bytes) -> str:
    """Return the digest that records name bytes by."""
    return hashlib.sha256(data).hexdigest()


def check_digest(data: bytes, expected: str, subject: str) -> bytes:
    """Return bytes that have the digest recorded for them.

    Raises:
        IntegrityError: They do not.
    """
    if (got := sha256(data)) != expected:
        raise IntegrityError(subject, "bytes were altered", got=got, expected=expected)
    return data


def learned(
    known: Mapping[str, ClientKnowledge], collection: Collection, round_index: int
) -> dict[str, ClientKnowledge]:
    """Add what clients showed in a round to what is known of them.

    Args:
        known: Client id -> what it showed so far.
        collection: What came in.
        round_index: The round.
    """
    new = {
        acceptance.client_id: ClientKnowledge(
            update_norm=acceptance.update_norm,
            loss=acceptance.metrics.get("mean_loss"),
            num_examples=acceptance.num_examples,
            last_round=round_index,
        )
        for acceptance in collection.accepted
    }
    return {**known, **new}
