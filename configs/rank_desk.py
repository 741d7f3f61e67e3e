"""From a config to the ranks of the next round: the run's schedulers, what ranks cost, and what is remembered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.sections.options import values_of
from configs.workbench import Workbench
from tasks.codecs.table import value_bytes
from tasks.options import allotted
from tasks.rank_schedulers import RANK_SCHEDULERS, RankCosts, RankDecision, RankSignals, decide
from tasks.rank_schedulers.smoothing import smoothed
from tasks.rounds.capabilities import Capability
from tasks.rounds.records import Collection, RoundRecord

KEPT = 0.5
"""Share of a client's earlier figures that is kept when it measures new ones: one bad round halves them, not more."""


@dataclass(frozen=True)
class RankDesk:
    """Where ranks are decided.

    Args:
        bench: The run.
    """

    bench: Workbench

    @property
    def reads_spectra(self) -> bool:
        """Whether a scheduler of the run looks at singular values, which cost an SVD."""
        return any(RANK_SCHEDULERS[name].reads_spectra for name in self.bench.config.ranks.schedulers)

    def first_ranks(self) -> RankDecision:
        """Decide the ranks of the first round, when nothing is known of anybody; what differs from the config's own."""
        return self.decide(self._signals(0, 0, self.bench.initial_ranks()))

    def next_ranks(
        self,
        record: RoundRecord,
        rounds_done: int,
        *,
        spectra: Mapping[str, Sequence[float]],
        overhead_bytes: float,
    ) -> RankDecision:
        """Decide the ranks of the round after a record.

        Args:
            record: What is known when a round ends: ranks in it, capabilities, limits, bytes moved.
            rounds_done: Rounds that trained so far.
            spectra: Module path -> singular values of the global adapter.
            overhead_bytes: Bytes that a client costs in a round whatever its rank [bytes].
        """
        signals = self._signals(
            record.round_index, rounds_done, record.ranks, record=record, spectra=spectra, overhead_bytes=overhead_bytes
        )
        return self.decide(signals)

    def decide(self, signals: RankSignals) -> RankDecision:
        """Ask the run's schedulers; of several, the smallest bound holds.

        Args:
            signals: What is known.
        """
        ranks = self.bench.config.ranks
        rows = [RANK_SCHEDULERS[name] for name in ranks.schedulers]
        values = allotted(rows, values_of(ranks.options))
        return decide(signals, [(row.name, row.bounds(signals, values[row.name])) for row in rows])

    def _signals(
        self,
        round_index: int,
        rounds_done: int,
        ranks: Mapping[str, int],
        *,
        record: RoundRecord | None = None,
        spectra: Mapping[str, Sequence[float]] | None = None,
        overhead_bytes: float = 0.0,
    ) -> RankSignals:
        bench, config = self.bench, self.bench.config
        totals = record.totals if record else {}
        return RankSignals(
            round_index=round_index,
            rounds_done=rounds_done,
            num_rounds=config.rounds,
            ranks=ranks,
            ceilings=bench.initial_ranks(),
            max_rank=config.ranks.max_rank,
            cohort_size=self._invited,
            costs=self._costs(overhead_bytes),
            capabilities=record.capabilities if record else {},
            limits=record.limits if record else {},
            spectra=spectra or {},
            spent_bytes=totals.get("uplink_bytes", 0) + totals.get("downlink_bytes", 0),
        )

    @property
    def _invited(self) -> int:
        cohort, everyone = self.bench.config.cohort, len(self.bench.clients)
        return min(cohort.cohort_size + cohort.overshoot, everyone) if cohort.cohort_size else everyone

    def _costs(self, overhead_bytes: float) -> RankCosts:
        config, exchange = self.bench.config, self.bench.config.exchange
        return RankCosts(
            values=self.bench.values,
            base_values=self.bench.base.num_parameters,
            uplink_bytes=value_bytes(exchange.uplink_codec, values_of(exchange.uplink_options)),
            downlink_bytes=value_bytes(exchange.downlink_codec, values_of(exchange.downlink_options)),
            overhead_bytes=overhead_bytes,
            deadline_s=config.cohort.deadline_s,
        )


def learned_capabilities(known: Mapping[str, Capability], collection: Collection) -> dict[str, Capability]:
    """Add what clients measured in a round to what is known of their machines.

    Args:
        known: Client id -> figures so far.
        collection: What came in.
    """
    new = {acceptance.client_id: acceptance.capability for acceptance in collection.accepted}
    return {**known, **{client: smoothed(known.get(client), found, KEPT) for client, found in new.items()}}
