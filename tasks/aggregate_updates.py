"""Verb: weave the accepted updates into the next global adapter, one client in memory at a time."""

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import ObjectStore, open_store
from infra.run_store import read_adapter, write_adapter
from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.table import aggregator
from tasks.aggregators.weightings import Contribution, weighting
from tasks.codecs.table import codec
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Acceptance, Collection, RoundPlan, RoundRecord, check_digest
from tasks.rounds.steps import Candidate


@task(name="aggregate-updates", task_run_name="aggregate round {plan.round_index}", **task_options())
def aggregate_updates(
    plan: RoundPlan, collection: Collection, previous: RoundRecord, store_url: str, bench: Workbench
) -> Candidate:
    """Aggregate in client order, so that equal collections give equal bytes.

    Args:
        plan: The round's plan.
        collection: Which updates count.
        previous: The record of the round before, whose adapter fills slots that nobody covered.
        store_url: Where adapters are exchanged.
        bench: The run's model, for the PEFT config of the result.

    Returns:
        The candidate, written as a PEFT folder.
    """
    store = open_store(store_url)
    config = bench.config.aggregation
    weights = weighting(config.weighting)([_contribution(a, plan.quality_metric) for a in collection.accepted])
    fold = aggregator(config.name).start()
    for position, (acceptance, weight) in enumerate(zip(collection.accepted, weights, strict=True)):
        fold.add(position, _read_update(store, plan, acceptance), weight)
    adapter = fold.finish(read_adapter(store, previous))
    digest = write_adapter(store, RoundKeys(plan.run_id, plan.round_index), adapter, bench.peft_config(adapter))
    total = sum(weights)
    shares = {a.client_id: w / total for a, w in zip(collection.accepted, weights, strict=True)}
    return Candidate(digest, plan.round_index, shares)


def _contribution(acceptance: Acceptance, quality_metric: str) -> Contribution:
    return Contribution(
        client_id=acceptance.client_id,
        num_examples=acceptance.num_examples,
        update_norm=acceptance.update_norm,
        quality=acceptance.metrics.get(quality_metric),
    )


def _read_update(store: ObjectStore, plan: RoundPlan, acceptance: Acceptance) -> LoraAdapter:
    key = RoundKeys(plan.run_id, plan.round_index).uplink(acceptance.client_id, acceptance.attempt, keys.UPDATE)
    data = check_digest(store.get(key), acceptance.update_sha256, key)
    return codec(plan.uplink_codec).decode(data, None)
