"""Does a manifest answer its invitation? Checks on words and digests; `tasks.adapters.admission` checks the tensors."""

from tasks.adapters.lora import LoraAdapter
from tasks.errors import UpdateRefusedError
from tasks.rounds.records import Invitation, RoundPlan, UpdateManifest

MAX_OVERHEAD = 1.25
"""An update may be this much larger than a float32 copy of its share: room for a codec's envelope, not for a bomb."""


def admit_manifest(manifest: UpdateManifest, plan: RoundPlan, invitation: Invitation, attempt: int) -> None:
    """Refuse a manifest that does not answer this invitation.

    Args:
        manifest: The client's claim.
        plan: The round's plan.
        invitation: The client's invitation in it.
        attempt: The attempt under whose key the manifest lies.

    Raises:
        UpdateRefusedError: Names the field that differs; reasons "wrong-round", "wrong-base", "wrong-share",
            "wrong-rank" for a lowered rank that is none, "wrong-held" for an earlier update that is not held, or
            "no-quality" when the metric that weights rest on is missing.
    """
    subject = f"client {invitation.client_id}, round {plan.round_index}, manifest"
    share = plan.share_of(invitation)
    expected = {
        "run_id": (plan.run_id, "wrong-round"),
        "round_index": (plan.round_index, "wrong-round"),
        "client_id": (invitation.client_id, "wrong-round"),
        "attempt": (attempt, "wrong-round"),
        "nonce": (invitation.nonce, "wrong-round"),
        "base_digest": (plan.base_digest, "wrong-base"),
        "share_sha256": (share.sha256, "wrong-share"),
    }
    if plan.quality_metric and plan.quality_metric not in manifest.metrics:
        raise UpdateRefusedError(
            subject,
            f"does not report {plan.quality_metric}, on which weights rest",
            reason="no-quality",
            remedy="set training.validation_frac, and give the client at least two examples",
        )
    _admit_rank(manifest, plan, invitation, subject)
    _admit_held(manifest, invitation, subject)
    for name, (value, reason) in expected.items():
        got = getattr(manifest, name)
        if got != value:
            raise UpdateRefusedError(
                subject,
                f"{name} is not the plan's",
                reason=reason,
                got=got,
                expected=value,
                remedy="train again from this round's plan",
            )


def _admit_rank(manifest: UpdateManifest, plan: RoundPlan, invitation: Invitation, subject: str) -> None:
    """A client may come back with less than it was sent, if it says why and the method can use it."""
    if not manifest.rank and not manifest.lowered:
        return
    if plan.equal_ranks or not 0 < manifest.rank < invitation.rank or not manifest.lowered:
        raise UpdateRefusedError(
            subject,
            "rank is not one that this invitation can be lowered to",
            reason="wrong-rank",
            got=f"{manifest.rank} ({manifest.lowered or 'no reason'})",
            expected=f"rank {invitation.rank}" if plan.equal_ranks else f"1 to {invitation.rank - 1}, with a reason",
            remedy="train again from this round's plan",
        )


def _admit_held(manifest: UpdateManifest, invitation: Invitation, subject: str) -> None:
    """A lazy client may rest only on what the server says it holds; one that holds something else starts afresh."""
    known = "" if invitation.held is None else invitation.held.sha256
    skips_rightly = manifest.update_sha256 == manifest.held_sha256 == known and not manifest.rank
    if manifest.held_sha256 in {"", known} and (skips_rightly or not manifest.skipped):
        return
    raise UpdateRefusedError(
        subject,
        "rests on another update than the one that is held of this client",
        reason="wrong-held",
        got=manifest.held_sha256 or "none",
        expected=known or "none: a whole update",
        remedy="train again from this round's plan; what the client kept of earlier rounds may be deleted",
    )


def check_update_size(num_bytes: int, share: LoraAdapter, subject: str) -> None:
    """Refuse an upload that is larger than any honest encoding of its share, before it is downloaded.

    Args:
        num_bytes: Size of the uploaded object [bytes].
        share: What the client started from; its update has the same shapes.
        subject: Client and round, for the message.

    Raises:
        UpdateRefusedError: Reason "too-large".
    """
    tensors = [t for pair in share.pairs.values() for t in (pair.a, pair.b)] + list(share.dense.values())
    limit = int(MAX_OVERHEAD * sum(t.numel() * max(4, t.element_size()) for t in tensors)) + 65_536
    if num_bytes > limit:
        raise UpdateRefusedError(
            subject,
            "update is larger than its plan allows",
            reason="too-large",
            got=num_bytes,
            expected=f"at most {limit} bytes",
        )
