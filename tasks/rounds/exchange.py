"""What of an adapter crosses the link, in which encoding, and how both ends put the rest back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.steps import advanced
from tasks.adapters.thin import Parts, fill, thin
from tasks.codecs.codec import CodecState, Trip, Wire
from tasks.codecs.table import wire
from tasks.rounds.records import Invitation, RoundPlan, Share

EXACT = wire("fp32", {})
"""How merges and shares that differences refer to are encoded: errors in them would add up at every client."""

Known = Callable[[int, str, Mapping[str, int]], Mapping[str, LoraPair]]
"""(round index, client id, module path -> rank) -> pairs that a client can tell without being sent them."""


Cut = Callable[[LoraAdapter, int], LoraAdapter]
"""(adapter, rank) -> the adapter at that lower rank, as the run's method cuts shares."""


def _uncut(adapter: LoraAdapter, rank: int) -> LoraAdapter:
    del rank
    return adapter


def _nothing(round_index: int, client_id: str, ranks: Mapping[str, int]) -> Mapping[str, LoraPair]:
    del round_index, client_id, ranks
    return {}


@dataclass(frozen=True)
class Exchange:
    """How shares and updates of one round are thinned and encoded; the default sends everything, exactly.

    Args:
        downlink: Factors that shares are sent with.
        uplink: Factors that updates are sent with.
        known: What a client can tell without being sent it.
        cut: How a share is cut for a client that trains at a lower rank than it was invited to.
        down: How shares are encoded; where that is as a difference, a client that lacks its reference gets `EXACT`.
        up: How updates are encoded, against what the client started from.
        trip: What both ends know of the round's transfers.
    """

    downlink: Parts = "both"
    uplink: Parts = "both"
    known: Known = _nothing
    cut: Cut = _uncut
    down: Wire = field(default=EXACT)
    up: Wire = field(default=EXACT)
    trip: Trip = field(default=Trip(0, 0))

    def start(self, plan: RoundPlan, invitation: Invitation, message: LoraAdapter, rank: int = 0) -> LoraAdapter:
        """Return what a client starts to train from.

        Args:
            plan: The round's plan.
            invitation: The client's part in it.
            message: Its share, as it was sent.
            rank: The rank that it trains at; 0 for the invitation's.

        Returns:
            The whole adapter, at the ranks of the share, or cut to a lower rank.
        """
        whole = self._whole_share(plan, invitation, message)
        return self.cut(whole, rank) if 0 < rank < invitation.rank else whole

    def _whole_share(self, plan: RoundPlan, invitation: Invitation, message: LoraAdapter) -> LoraAdapter:
        if self.downlink == "both":
            return message
        known = self.known(plan.round_index, invitation.client_id, plan.share_of(invitation).ranks)
        return fill(message, known, self.downlink, subject=f"client {invitation.client_id}, share")

    def read_share(self, share: Share, data: bytes) -> LoraAdapter:
        """Decode a whole share, as it was sent.

        Args:
            share: How the plan names it.
            data: Its object.
        """
        encoding = EXACT if share.exact else self.down
        return encoding.decode(data, None, self.trip)

    def thinned(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return what of an adapter is sent."""
        return thin(adapter, self.uplink)

    def reference(self, start: LoraAdapter, held: LoraAdapter | None = None) -> LoraAdapter:
        """Return what a client's message is written against.

        Args:
            start: What it started from, whole, at the ranks it trained at.
            held: The step that the server still holds of it, where it is lazy; None for none.

        Returns:
            As thin as the message.
        """
        thinned = self.thinned(start)
        return thinned if held is None else advanced(thinned, held)

    def write_update(
        self, update: LoraAdapter, reference: LoraAdapter, state: CodecState = None
    ) -> tuple[bytes, CodecState]:
        """Encode what a client sends.

        Args:
            update: What it trained, whole.
            reference: As `reference` returns it.
            state: What the client's codec kept from its last message.

        Returns:
            The message, and what the codec keeps.
        """
        return self.up.encode(self.thinned(update), reference, state, self.trip)

    def read_update(self, data: bytes, reference: LoraAdapter) -> LoraAdapter:
        """Decode a client's message, as thin as it was sent.

        Args:
            data: What it sent.
            reference: What it was written against.

        Raises:
            AdapterFormatError: The message is none, or was written against something else.
        """
        return self.up.decode(data, reference, self.trip)

    def update(self, message: LoraAdapter, start: LoraAdapter, subject: str) -> LoraAdapter:
        """Return a client's whole update.

        Args:
            message: What it sent, decoded.
            start: What it started from, which has the factors that it did not send.
            subject: Whom to name, e.g. "client c07, round 3".

        Raises:
            UpdateRefusedError: A factor is missing or does not fit.
        """
        return fill(message, start.pairs, self.uplink, subject=subject)
