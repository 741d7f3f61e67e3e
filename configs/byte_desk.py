"""From a config to the budget of bytes: whether another round may start."""

from collections import Counter
from dataclasses import dataclass

from configs.workbench import Workbench
from tasks.rounds.ledger import MEGABYTE, moved_bytes
from tasks.rounds.records import TRAINED, RoundRecord


@dataclass(frozen=True)
class ByteDesk:
    """Where the run's bytes are looked after; nothing to do in runs without a budget.

    Counted is what the records book: uplink and downlink of clients, envelopes, repeats and failed attempts included.

    Args:
        bench: The run.
    """

    bench: Workbench

    def allows(self, record: RoundRecord) -> bool:
        """Tell whether the round after a record may start.

        Args:
            record: The run's last record.

        Returns:
            Whether something is left, and the next round is expected to fit into it.
        """
        budget = self.bench.config.cohort.byte_budget_mb * MEGABYTE
        spent = moved_bytes(record.totals)
        return not budget or (spent < budget and spent + expected_bytes(record) <= budget)


def expected_bytes(record: RoundRecord) -> float:
    """Return what the round after a record is expected to move [bytes].

    As much as the round of the record, and shares as large as its updates where clients drew theirs: the next ones they
    download. Where that round failed, perhaps for want of answers, at least as much as the rounds so far on average.
    Before the first round nothing is known, and nothing is expected.

    Args:
        record: A run's last record.
    """
    moved = Counter[str]()
    for line in record.collection.ledger:
        moved[line.what] += line.num_bytes
    last = moved.total() + (0 if moved["share"] else moved["update"])
    if record.outcome in TRAINED or not record.round_index:
        return last
    return max(last, moved_bytes(record.totals) / record.round_index)
