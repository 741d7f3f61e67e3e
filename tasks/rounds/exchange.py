"""What of an adapter crosses the link, and how both sides put the rest back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.thin import Parts, fill
from tasks.rounds.records import Invitation, RoundPlan

MERGE_CODEC = "fp32"
"""How merges are encoded: exactly, because errors in them would add up in every client's base."""

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
    """How shares and updates are thinned; the default sends everything.

    Args:
        downlink: Factors that shares are sent with.
        uplink: Factors that updates are sent with.
        known: What a client can tell without being sent it.
        cut: How a share is cut for a client that trains at a lower rank than it was invited to.
    """

    downlink: Parts = "both"
    uplink: Parts = "both"
    known: Known = _nothing
    cut: Cut = _uncut

    def start(self, plan: RoundPlan, invitation: Invitation, message: LoraAdapter, rank: int = 0) -> LoraAdapter:
        """Return what a client starts to train from.

        Args:
            plan: The round's plan.
            invitation: The client's part in it.
            message: Its share, as it was sent.
            rank: The lower rank that it trains at; 0 for the invitation's.

        Returns:
            The whole adapter, at the ranks of the share, or cut to the lower rank.
        """
        whole = self._whole_share(plan, invitation, message)
        return self.cut(whole, rank) if rank else whole

    def _whole_share(self, plan: RoundPlan, invitation: Invitation, message: LoraAdapter) -> LoraAdapter:
        if self.downlink == "both":
            return message
        known = self.known(plan.round_index, invitation.client_id, plan.share_of(invitation).ranks)
        return fill(message, known, self.downlink, subject=f"client {invitation.client_id}, share")

    def update(self, message: LoraAdapter, start: LoraAdapter, subject: str) -> LoraAdapter:
        """Return a client's whole update.

        Args:
            message: What it sent.
            start: What it started from, which has the factors that it did not send.
            subject: Whom to name, e.g. "client c07, round 3".

        Raises:
            UpdateRefusedError: A factor is missing or does not fit.
        """
        return fill(message, start.pairs, self.uplink, subject=subject)

    def whole_update(
        self, message: LoraAdapter, round_index: int, client_id: str, ranks: Mapping[str, int]
    ) -> LoraAdapter:
        """Return an admitted update whole, from what is known without the client's share.

        Args:
            message: What it sent.
            round_index: The round.
            client_id: Who.
            ranks: Module path -> rank.
        """
        if self.uplink == "both":
            return message
        known = self.known(round_index, client_id, ranks)
        return fill(message, known, self.uplink, subject=f"client {client_id}, round {round_index}")
