"""The downlink's two ends: the server lays out shares, a client fetches its own the cheapest way there is."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from configs.workbench import Workbench
from infra.object_store import ObjectStore, commit
from infra.private_state import PrivateState
from infra.run_store import find_record
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import encode_adapter
from tasks.adapters.steps import same_shape, squared_length, step_between
from tasks.adapters.thin import thin
from tasks.errors import AdapterFormatError
from tasks.rounds.exchange import Exchange
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Invitation, RoundPlan, Share, Step, check_digest, sha256

SHARE = "share"
"""What a client keeps of its last shares, for steps that start from them."""
MOVES_KEPT = 10
"""Changes of a share that lazy clients compare theirs with; LAQ's rule looks at so many."""


@dataclass(frozen=True)
class ShareDesk:
    """Writes a round's shares: one object per model and distinct rank, not per client.

    Args:
        store: Where to.
        round_keys: The round.
        bench: The run's method and codecs.
        exchange: How this round's shares are thinned and encoded.
        is_first: No round has made a global adapter yet: clients can draw what they start from.
        cut: Models whose slots are others now than in the round before: nothing leads from those shares to these.
    """

    store: ObjectStore
    round_keys: RoundKeys
    bench: Workbench
    exchange: Exchange
    is_first: bool
    cut: Container[str] = ()

    def lay_out(self, adapters: Mapping[str, LoraAdapter], invitations: Iterable[Invitation]) -> dict[str, Share]:
        """Write what the invited clients download.

        Args:
            adapters: Model name -> global adapter, at the ranks that clients have now.
            invitations: Who is invited at which rank.

        Returns:
            "<model>/<rank>" -> share.
        """
        before = self._plan_before()
        shares: dict[str, Share] = {}
        for invitation in invitations:
            name = invitation.share_name
            if name not in shares:
                previous = None if before is None or invitation.model in self.cut else before.shares.get(name)
                shares[name] = self._share(adapters[invitation.model], invitation, previous)
        return shares

    def _share(self, adapter: LoraAdapter, invitation: Invitation, previous: Share | None) -> Share:
        bench, exchange = self.bench, self.exchange
        ranks = bench.module_ranks(invitation.rank)
        message = thin(bench.aggregator.share(adapter, ranks), exchange.downlink)
        is_drawn = self.is_first and encode_adapter(message) == encode_adapter(drawn_share(bench, exchange, ranks))
        before = self._comparable(previous, message)
        step = None
        if before is not None and previous is not None and bench.downlink_codec.needs_reference:
            data, _ = exchange.down.encode(message, before, None, exchange.trip)
            step = self._step(data, invitation, previous)
            message = exchange.down.decode(data, before, exchange.trip)  # what everybody starts from, exact or not
        is_exact = is_drawn or bench.downlink_codec.needs_reference
        data = encode_adapter(message) if is_exact else exchange.down.encode(message, None, None, exchange.trip)[0]
        key = self.round_keys.share(invitation.rank, invitation.model)
        commit(self.store, key, data)
        return Share(
            key=key,
            sha256=sha256(data),
            num_bytes=len(data),
            ranks=ranks,
            exact=is_exact,
            drawn=is_drawn,
            step=step,
            moved=self._moved(previous, before, message),
        )

    def _step(self, data: bytes, invitation: Invitation, previous: Share) -> Step:
        key = self.round_keys.step(invitation.rank, invitation.model)
        commit(self.store, key, data)
        return Step(key=key, sha256=sha256(data), num_bytes=len(data), reference=previous.sha256)

    def _moved(self, previous: Share | None, before: LoraAdapter | None, message: LoraAdapter) -> tuple[float, ...]:
        if previous is None or before is None:
            return ()
        return (squared_length(step_between(before, message)), *previous.moved)[:MOVES_KEPT]

    def _comparable(self, previous: Share | None, message: LoraAdapter) -> LoraAdapter | None:
        """Read the share of the round before, if this round's method has a use for it and it has the same shape."""
        bench = self.bench
        if previous is None or not (bench.downlink_codec.needs_reference or bench.is_lazy):
            return None
        data = check_digest(self.store.get(previous.key), previous.sha256, previous.key)
        before = bench.exchange_in(self.round_keys.round_index - 1, 0).read_share(previous, data)
        return before if same_shape(before, message) else None

    def _plan_before(self) -> RoundPlan | None:
        last = RoundKeys(self.round_keys.run_id, self.round_keys.round_index - 1)
        return find_record(self.store, last.plan, RoundPlan)


def drawn_share(bench: Workbench, exchange: Exchange, ranks: Mapping[str, int]) -> LoraAdapter:
    """Return the first round's share as anybody with the config and the base model can draw it.

    Args:
        bench: The run.
        exchange: How shares are thinned.
        ranks: Module path -> rank of the share.
    """
    return thin(bench.aggregator.share(bench.initial_adapter(), ranks), exchange.downlink)


@dataclass(frozen=True)
class Fetched:
    """A client's share.

    Args:
        message: The share, as thin as it was sent.
        num_bytes: What was downloaded for it [bytes].
    """

    message: LoraAdapter
    num_bytes: int


def fetch_share(
    store: ObjectStore, plan: RoundPlan, invitation: Invitation, bench: Workbench, private: PrivateState
) -> Fetched:
    """Get a client's share: drawn, led to from the last one that this machine holds, or downloaded whole.

    What was drawn or put together counts only if it has the digest of the whole share.

    Args:
        store: Where the round lies.
        plan: Its plan.
        invitation: The client's part in it.
        bench: The client's run.
        private: What this machine keeps.

    Raises:
        IntegrityError: The share, or the step to it, was altered.
    """
    share, exchange, downloaded = plan.share_of(invitation), bench.exchange(plan), 0
    message = drawn_share(bench, exchange, share.ranks) if share.drawn else None
    if message is None and share.step is not None:
        message, downloaded = _led_to(store, share.step, exchange, private)
    if message is None or sha256(encode_adapter(message)) != share.sha256:
        data = check_digest(store.get(share.key), share.sha256, share.key)
        message, downloaded = exchange.read_share(share, data), downloaded + len(data)
    if bench.downlink_codec.needs_reference:
        private.save(SHARE, plan.round_index, message)
    return Fetched(message, downloaded)


def _led_to(
    store: ObjectStore, step: Step, exchange: Exchange, private: PrivateState
) -> tuple[LoraAdapter | None, int]:
    """Follow a step from the share it starts from, where that is still here."""
    before = private.find(SHARE, step.reference)
    if before is None:
        return None, 0
    data = check_digest(store.get(step.key), step.sha256, step.key)
    try:
        return exchange.down.decode(data, before, exchange.trip), len(data)
    except AdapterFormatError:  # the whole share is there as well
        return None, len(data)
