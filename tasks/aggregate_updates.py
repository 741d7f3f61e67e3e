"""Verb: weave a group's accepted updates into its next global adapter.

Messages are read one at a time. What stays of them is the method's business: slot methods keep one adapter of sums,
product methods, robust rules and the diagnostics keep the factors of all clients.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import msgspec
from prefect import task

from configs.privacy_desk import PrivacyDesk
from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import ObjectStore, commit, open_store
from infra.round_reader import RoundReader
from infra.run_store import find_adapter, read_adapter, write_adapter, write_held, write_json
from tasks.adapters.lora import LoraAdapter, prefix
from tasks.adapters.steps import advanced
from tasks.adapters.thin import thin
from tasks.aggregators.fold import Fold
from tasks.aggregators.robust.screen import ScreenedFold
from tasks.aggregators.stacks import stacked
from tasks.aggregators.weightings import Contribution, weighting
from tasks.codecs.codec import Trip
from tasks.evaluation.diagnostics import Observed, diagnose
from tasks.rounds import keys
from tasks.rounds.exchange import EXACT
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Acceptance, GlobalModel, Held, Merge, RoundPlan, RoundRecord, sha256
from tasks.rounds.steps import Candidate, Group
from tasks.rounds.summary import RunHandle
from tasks.standing_in import stand_in


@task(
    name="aggregate-updates",
    task_run_name="aggregate round {plan.round_index}, {group.model}",
    **task_options(),
)
def aggregate_updates(
    run: RunHandle, plan: RoundPlan, group: Group, previous: RoundRecord, bench: Workbench
) -> Candidate:
    """Aggregate in client order, so that equal collections give equal bytes.

    Args:
        run: The run.
        plan: The round's plan.
        group: Which updates, and what they go on from.
        previous: The record of the round before, whose adapter fills slots that nobody covered.
        bench: The run's method, and its model for the PEFT config of the result.

    Returns:
        The candidate, written as a PEFT folder.
    """
    started = time.perf_counter()
    store, parent = open_store(run.store_url), previous.models[group.parent]
    before = read_adapter(store, run.run_id, plan.cuts.get(group.parent, parent))
    reader = RoundReader(store, plan, bench.exchange(plan))
    stand_ins = stand_in(reader, group.accepted, _own_weights(group, plan, bench), previous, bench)
    weights = stand_ins.weights
    # Where clients keep a factor at home nobody but they could say what their products are.
    has_products = bench.aggregator.sends != "a" and bool(before.pairs)
    observed = Observed() if bench.config.evaluation.diagnostics and has_products else None
    privacy = PrivacyDesk(bench)
    fold = privacy.fold(before) if privacy.is_on else bench.fold()
    shared = {group.parent: before}  # and what those started from who have just come from another cluster
    for position, (acceptance, weight) in enumerate(zip(group.accepted, weights, strict=True)):
        name = reader.invitation_of(acceptance).model
        if bench.is_downlink_lossy and name not in shared:
            shared[name] = read_adapter(store, run.run_id, plan.cuts.get(name, previous.models[name]))
        update = _meant(reader, acceptance, shared.get(name, before), bench)
        fold.add(position, update, weight)
        if observed is not None:
            observed.add(update, weight, position=position)
    adapter = fold.finish(before)
    ranks = bench.module_ranks(group.accepted[0].rank) if group.accepted else {}
    addition = None if bench.aggregator.merges is None else bench.aggregator.merges(adapter, before, ranks)
    merges = _with_merge(store, plan, group, parent, addition)
    round_keys = RoundKeys(plan.run_id, plan.round_index)
    written = _written(store, round_keys, group, adapter, merges, bench)
    written = msgspec.structs.replace(written, slots_round=plan.cuts.get(group.parent, parent).slots_round)
    seconds = time.perf_counter() - started
    made = adapter if addition is None else _this_round(adapter, addition, bench, ranks)
    figures = {} if observed is None else _measure(store, round_keys, group, observed, made, bench)
    total = sum(weights)
    shares = {a.client_id: w / total for a, w in zip(group.accepted, weights, strict=True)}
    notes = {group.accepted[place].client_id: note for place, note in _notes(fold).items()}
    return Candidate(
        group,
        written,
        shares,
        seconds,
        figures={**figures, **stand_ins.figures},
        notes={**notes, **stand_ins.notes},
        held=_hold(reader, group) if bench.is_lazy else {},
        distances=stand_ins.distances,
    )


def _meant(reader: RoundReader, acceptance: Acceptance, before: LoraAdapter, bench: Workbench) -> LoraAdapter:
    """Return an update as it would be had the client started from its share of `before`, as the server meant it."""
    update = reader.update(acceptance)
    if not bench.is_downlink_lossy or reader.plan.rounds_done == 0:
        return update
    invitation = reader.invitation_of(acceptance)
    share = bench.aggregator.share(before, reader.plan.share_of(invitation).ranks)
    exact = reader.exchange.start(reader.plan, invitation, thin(share, reader.exchange.downlink))
    owed = reader.owed(acceptance, exact)
    return update if owed is None else advanced(update, owed)


def _written(
    store: ObjectStore,
    round_keys: RoundKeys,
    group: Group,
    adapter: LoraAdapter,
    merges: tuple[Merge, ...],
    bench: Workbench,
) -> GlobalModel:
    if PrivacyDesk(bench).is_on:
        # The same sum under noise drawn a second time would tell more than both tries are accounted for.
        released = find_adapter(store, round_keys, model=group.model, merges=merges)
        if released is not None:
            return released
    return write_adapter(store, round_keys, adapter, bench.peft_config(adapter), model=group.model, merges=merges)


def _own_weights(group: Group, plan: RoundPlan, bench: Workbench) -> list[float]:
    """Nobody is there only in runs that hide their clients: their rounds end like any other."""
    weigh = weighting(bench.config.aggregation.weighting)
    return weigh([_contribution(a, plan.quality_metric) for a in group.accepted]) if group.accepted else []


def _hold(reader: RoundReader, group: Group) -> dict[str, Held]:
    """Keep what lazy clients brought, and count the rounds of those that brought nothing."""
    held = {}
    for acceptance in group.accepted:
        before = reader.invitation_of(acceptance).held
        if acceptance.skipped and before is not None:
            held[acceptance.client_id] = msgspec.structs.replace(before, skips=before.skips + 1)
            continue
        step, round_keys = reader.step(acceptance), RoundKeys(reader.plan.run_id, reader.plan.round_index)
        held[acceptance.client_id] = Held(
            round_index=reader.plan.round_index,
            sha256=write_held(reader.store, round_keys, acceptance.client_id, step),
            rank=acceptance.rank,
            model=group.model,
        )
    return held


def _measure(
    store: ObjectStore, round_keys: RoundKeys, group: Group, observed: Observed, made: LoraAdapter, bench: Workbench
) -> dict[str, float]:
    found = diagnose(observed, made, [bench.module_ranks(acceptance.rank) for acceptance in group.accepted])
    write_json(store, round_keys.adapter(keys.DIAGNOSTICS, group.model), found.to_json())
    return found.to_metrics()


def _notes(fold: Fold) -> Mapping[int, str]:
    return fold.notes if isinstance(fold, ScreenedFold) else {}


def _contribution(acceptance: Acceptance, quality_metric: str) -> Contribution:
    return Contribution(
        client_id=acceptance.client_id,
        num_examples=acceptance.num_examples,
        update_norm=acceptance.update_norm,
        quality=acceptance.metrics.get(quality_metric),
    )


def _with_merge(
    store: ObjectStore, plan: RoundPlan, group: Group, parent: GlobalModel, addition: LoraAdapter | None
) -> tuple[Merge, ...]:
    """Write what clients have to add to their base, if anything, behind what they had to add before."""
    if addition is None or not addition.pairs:
        return parent.merges
    # Exact whatever the shares are sent with: what clients add up must stay what the server holds.
    data, _ = EXACT.encode(LoraAdapter(addition.pairs), None, None, Trip(plan.round_index, 0))
    key = RoundKeys(plan.run_id, plan.round_index).adapter(keys.MERGE, group.model)
    commit(store, key, data)
    merge = Merge(round_index=plan.round_index, key=key, sha256=sha256(data), num_bytes=len(data))
    return (*parent.merges, merge)


def _this_round(adapter: LoraAdapter, addition: LoraAdapter, bench: Workbench, ranks: Mapping[str, int]) -> LoraAdapter:
    """Leave the merges of earlier rounds out of an adapter: what is left is what this round's updates became."""
    if bench.aggregator.downlink == "stack":
        return addition
    trained = prefix(adapter, ranks)
    pairs = {
        path: replace(stacked([pair, addition.pairs[path]]), form=pair.form) if path in addition.pairs else pair
        for path, pair in trained.pairs.items()
    }
    return LoraAdapter(pairs)
