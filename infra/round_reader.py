"""What the server reads of a round, as its clients meant it: shares and updates, decoded and put together."""

from dataclasses import dataclass, field

from infra.object_store import ObjectStore
from infra.run_store import read_held
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.steps import same_shape, step_between
from tasks.rounds import keys
from tasks.rounds.exchange import Exchange
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Acceptance, Invitation, RoundPlan, check_digest


@dataclass
class RoundReader:
    """Reads one round; each share is decoded once.

    Args:
        store: Where the round lies.
        plan: The round's plan.
        exchange: How its shares and updates are thinned and encoded.
    """

    store: ObjectStore
    plan: RoundPlan
    exchange: Exchange
    _messages: dict[str, LoraAdapter] = field(default_factory=dict)

    def start(self, invitation: Invitation, rank: int = 0) -> LoraAdapter:
        """Return what a client started from, whole.

        Args:
            invitation: The client's part in the round.
            rank: The rank that it trained at; 0 for the invitation's.

        Raises:
            IntegrityError: The share was altered.
        """
        share = self.plan.share_of(invitation)
        if share.key not in self._messages:
            data = check_digest(self.store.get(share.key), share.sha256, share.key)
            self._messages[share.key] = self.exchange.read_share(share, data)
        return self.exchange.start(self.plan, invitation, self._messages[share.key], rank)

    def start_of(self, acceptance: Acceptance) -> LoraAdapter:
        """Return what an accepted client started from, whole, at the rank of its update."""
        return self.start(self.invitation_of(acceptance), acceptance.rank)

    def held(self, invitation: Invitation) -> LoraAdapter | None:
        """Return the step that the server holds of a lazy client; None for none.

        Raises:
            IntegrityError: The step was altered.
        """
        if invitation.held is None:
            return None
        return read_held(self.store, self.plan.run_id, invitation.client_id, invitation.held)

    def message(self, acceptance: Acceptance) -> LoraAdapter:
        """Return what an accepted client sent, or what stands for it where it skipped; as thin as it was sent.

        Raises:
            IntegrityError: The update was altered since it was accepted.
        """
        invitation = self.invitation_of(acceptance)
        held = self.held(invitation) if acceptance.held_sha256 else None
        reference = self.exchange.reference(self.start_of(acceptance), held)
        if acceptance.skipped:
            return reference
        key = RoundKeys(self.plan.run_id, self.plan.round_index).uplink(
            acceptance.client_id, acceptance.attempt, keys.UPDATE
        )
        return self.exchange.read_update(check_digest(self.store.get(key), acceptance.update_sha256, key), reference)

    def update(self, acceptance: Acceptance) -> LoraAdapter:
        """Return an accepted client's whole update."""
        start = self.start_of(acceptance)
        subject = f"client {acceptance.client_id}, round {self.plan.round_index}"
        return self.exchange.update(self.message(acceptance), start, subject)

    def owed(self, acceptance: Acceptance, exact: LoraAdapter) -> LoraAdapter | None:
        """Return what a lossy downlink kept from a client: the step from what it started from to what was meant.

        Without it the mean of updates would take the client's start for the global adapter, and what the downlink left
        out of a share would be lost for good.

        Args:
            acceptance: An accepted update.
            exact: The client's share as the server meant it, whole.

        Returns:
            The step; None where the client trained at a lower rank, whose cut of the exact share may have other slots.
        """
        start = self.start_of(acceptance)
        return step_between(start, exact) if same_shape(start, exact) else None

    def step(self, acceptance: Acceptance) -> LoraAdapter:
        """Return what a client's message changes in what it was sent: what the server holds of a lazy client."""
        return step_between(self.exchange.reference(self.start_of(acceptance)), self.message(acceptance))

    def invitation_of(self, acceptance: Acceptance) -> Invitation:
        """Return what an accepted client was invited to."""
        return next(i for i in self.plan.invitations if i.client_id == acceptance.client_id)
