"""A client's end of the uplink: what it encodes, what it keeps for the next time, and whether it sends at all."""

from dataclasses import dataclass

import torch

from configs.workbench import Workbench
from infra.private_state import PrivateState
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.steps import same_shape, squared_length, step_between
from tasks.codecs.codec import CodecState
from tasks.lazy.rules import LazyLook
from tasks.rounds.exchange import Exchange
from tasks.rounds.records import Invitation, RoundPlan, sha256

CODEC, HELD, LEFT_OUT = "codec", "held", "left-out"
"""What a client keeps for its next message: its codec's memory, the last steps that the server got of it, and the
squared length of what the last message left out."""


@dataclass(frozen=True)
class Outgoing:
    """What a client sends.

    Args:
        data: Its message; empty where it skips.
        sha256: Digest of the message, or of the held step that stands for it.
        held_sha256: The held step that it goes on from; empty where it starts afresh.
        skipped: What the server holds of it still stands.
    """

    data: bytes
    sha256: str
    held_sha256: str = ""
    skipped: bool = False


@dataclass(frozen=True)
class Uplink:
    """One client's end in one round.

    Args:
        bench: The client's run.
        plan: The round's plan.
        invitation: The client's part in it.
        private: What this machine keeps.
    """

    bench: Workbench
    plan: RoundPlan
    invitation: Invitation
    private: PrivateState

    @property
    def exchange(self) -> Exchange:
        """How this round's updates are thinned and encoded."""
        return self.bench.exchange(self.plan)

    def prepare(self, update: LoraAdapter, start: LoraAdapter, *, is_lowered: bool = False) -> Outgoing:
        """Encode what was trained, unless it says too little that is new, and keep what the next message rests on.

        Args:
            update: What was trained, whole.
            start: What it started from, whole and at the same ranks.
            is_lowered: That is a lower rank than it was invited to: then it does not skip.

        Raises:
            NonFiniteUpdateError: The update is not finite, or beyond what the codec can say.
        """
        if self.bench.is_lazy:
            return self._lazily(update, start, is_lowered=is_lowered)
        before = self._left_out()
        data, state = self.exchange.write_update(update, self.exchange.reference(start), before)
        if state is not None:  # what was left out of a factor that was not sent this time waits for the next
            self.private.save(CODEC, self.plan.round_index, LoraAdapter({}, {**(before or {}), **state}))
        return Outgoing(data, sha256(data))

    def _left_out(self) -> CodecState:
        """Return what earlier messages left out, unless every slot has since become another one."""
        kept = self.private.latest(CODEC, self.plan.round_index)
        since = self.plan.slots_rounds.get(self.invitation.model, 0)
        return None if kept is None or kept[0] < since else kept[1].dense

    def _lazily(self, update: LoraAdapter, start: LoraAdapter, *, is_lowered: bool) -> Outgoing:
        exchange, plain = self.exchange, self.exchange.reference(start)
        held = None if is_lowered else self._held(plain)
        reference = exchange.reference(start, held)
        data, _ = exchange.write_update(update, reference)
        arriving = exchange.read_update(data, reference)
        left_out = squared_length(step_between(arriving, exchange.thinned(update)))
        look = self._look(squared_length(step_between(reference, arriving)), left_out, is_known=held is not None)
        held_sha256 = self.invitation.held.sha256 if held is not None and self.invitation.held is not None else ""
        if held_sha256 and self.bench.lazy_rule(look).skip:
            return Outgoing(b"", held_sha256, held_sha256, skipped=True)
        self.private.save(HELD, self.plan.round_index, step_between(plain, arriving))
        self.private.save(LEFT_OUT, self.plan.round_index, LoraAdapter({}, {LEFT_OUT: torch.tensor(left_out)}))
        return Outgoing(data, sha256(data), held_sha256)

    def _held(self, plain: LoraAdapter) -> LoraAdapter | None:
        """Return the step that the server says it holds, if this machine has the very same."""
        if self.invitation.held is None:
            return None
        found = self.private.find(HELD, self.invitation.held.sha256)
        return found if found is not None and same_shape(found, plain) else None

    def _look(self, innovation_sq: float, error_sq: float, *, is_known: bool) -> LazyLook:
        last = self.private.latest(LEFT_OUT, self.plan.round_index)
        return LazyLook(
            innovation_sq=innovation_sq,
            error_sq=error_sq,
            last_error_sq=0.0 if last is None else float(last[1].dense[LEFT_OUT]),
            moved_sq=self.plan.share_of(self.invitation).moved,
            num_clients=self.plan.cohort_size,
            skips=0 if self.invitation.held is None else self.invitation.held.skips,
            has_held=is_known,
        )
