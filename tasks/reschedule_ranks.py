"""Verb: decide the ranks of the next round, each change with its reason, from what the round taught."""

from collections.abc import Mapping, Sequence

import msgspec
from prefect import task

from configs.rank_desk import RankDesk, learned_capabilities
from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import open_store
from infra.run_store import read_adapter
from tasks.adapters.products import spectrum
from tasks.rank_schedulers import NextRanks
from tasks.rounds.ledger import LedgerLine
from tasks.rounds.limits import learned_limits
from tasks.rounds.records import Collection, GlobalModel, RoundPlan, RoundRecord
from tasks.rounds.steps import Judged


@task(name="reschedule-ranks", task_run_name="reschedule after round {plan.round_index}", **task_options())
def reschedule_ranks(
    plan: RoundPlan,
    collection: Collection,
    judged: Sequence[Judged],
    previous: RoundRecord,
    store_url: str,
    bench: Workbench,
) -> NextRanks:
    """Learn from the round and ask the run's rank schedulers; a failed round teaches as well.

    Args:
        plan: The round's plan.
        collection: What came in, with what each client measured.
        judged: The round's new global adapters; none when it failed.
        previous: The record before, for current ranks and bytes.
        store_url: Where adapters are exchanged.
        bench: The run.

    Returns:
        Ranks of all clients for the next round.
    """
    desk = RankDesk(bench)
    learned = msgspec.structs.replace(
        previous,
        round_index=plan.round_index,
        capabilities=learned_capabilities(previous.capabilities, collection),
        limits=learned_limits(previous.limits, plan, collection, batch_size=bench.config.training.batch_size),
        totals=_with_spent(previous.totals, collection.ledger),
    )
    model = judged[0].candidate.adapter if judged else previous.models[previous.main]
    decision = desk.next_ranks(
        learned,
        previous.rounds_done + bool(judged),
        spectra=_spectra(store_url, plan.run_id, model) if desk.reads_spectra else {},
        overhead_bytes=_overhead(collection.ledger),
    )
    return NextRanks(decision, learned.capabilities, learned.limits)


def _spectra(store_url: str, run_id: str, model: GlobalModel) -> dict[str, list[float]]:
    adapter = read_adapter(open_store(store_url), run_id, model)
    return {path: spectrum(pair).tolist() for path, pair in adapter.pairs.items()}


def _with_spent(totals: Mapping[str, int], ledger: Sequence[LedgerLine]) -> dict[str, int]:
    spent = dict(totals)
    for line in ledger:
        name = f"{line.direction}_bytes"
        spent[name] = spent.get(name, 0) + line.num_bytes
    return spent


def _overhead(ledger: Sequence[LedgerLine]) -> float:
    """Return the bytes that a client cost beside its share and its update, as the mean over the round's clients."""
    beside = sum(line.num_bytes for line in ledger if line.what not in {"share", "update"})
    return beside / max(1, len({line.client_id for line in ledger}))
