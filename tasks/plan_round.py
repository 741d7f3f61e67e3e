"""Verb: decide who trains what in a round, and lay out the shares to download."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from prefect import task

from configs.privacy_desk import PrivacyDesk
from configs.sections.options import values_of
from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import ObjectStore, open_store
from infra.run_store import commit_record, find_record, read_adapter, write_adapter
from infra.server_secret import server_secret
from infra.settings import read_settings
from infra.whole_base import whole_merge
from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.shares import recut
from tasks.cohorts.poisson import poisson_cohort
from tasks.cohorts.selections.knowledge import Draw
from tasks.cohorts.selections.table import selection
from tasks.errors import IntegrityError
from tasks.rounds import keys
from tasks.rounds.capabilities import Limit
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import GlobalModel, Held, Invitation, RoundPlan, RoundRecord
from tasks.rounds.seeds import derive_nonce
from tasks.rounds.steps import PlannedRound, Ticket
from tasks.rounds.summary import RunHandle
from tasks.shares import ShareDesk


@task(name="plan-round", task_run_name="plan round {round_index}", **task_options())
def plan_round(run: RunHandle, round_index: int, previous: RoundRecord, bench: Workbench) -> PlannedRound:
    """Invite a cohort and cut its shares, or adopt the plan an earlier try made.

    Args:
        run: The run.
        round_index: The round to plan.
        previous: The record of the round before.
        bench: The run's data and model.

    Returns:
        The plan and the clients that still have to train.

    Raises:
        IntegrityError: The plan that lies there does not follow from the record before.
    """
    store = open_store(run.store_url)
    round_keys = RoundKeys(run.run_id, round_index)
    plan = find_record(store, round_keys.plan, RoundPlan)
    if plan is None:
        plan = commit_record(store, round_keys.plan, _plan(store, round_keys, previous, bench))
    known = {name: model.sha256 for name, model in previous.models.items()}
    if plan.models != known:
        raise IntegrityError(
            round_keys.plan,
            "was made for other global adapters",
            got=plan.models,
            expected=known,
            remedy="somebody changed this run's records; restore them or start a new run",
        )
    tickets = _pending(store, round_keys, plan)
    invitations = {invitation.client_id: invitation for invitation in plan.invitations}
    for ticket in tickets:
        part = plan.part_of(invitations[ticket.client_id])
        commit_record(store, round_keys.part(ticket.client_id), part)
    return PlannedRound(plan, tickets)


def _plan(store: ObjectStore, round_keys: RoundKeys, previous: RoundRecord, bench: Workbench) -> RoundPlan:
    config = bench.config
    adapters = {name: read_adapter(store, round_keys.run_id, model) for name, model in previous.models.items()}
    cuts = _recut(store, round_keys, previous, bench, adapters)
    cohort = _cohort(round_keys, previous, bench)
    invitations = tuple(
        Invitation(
            client_id=client,
            rank=previous.ranks[client],
            nonce=derive_nonce(round_keys.run_id, round_keys.round_index, client),
            pool=config.dispatch.mode,
            model=previous.model_of(client),
            batch_size=previous.limits.get(client, Limit()).batch_size,
            held=_held(client, round_keys, previous, bench, cuts),
        )
        for client in cohort
    )
    exchange = bench.exchange_in(round_keys.round_index, previous.rounds_done)
    desk = ShareDesk(store, round_keys, bench, exchange, is_first=previous.rounds_done == 0, cut=cuts.models)
    return RoundPlan(
        run_id=round_keys.run_id,
        round_index=round_keys.round_index,
        base_digest=bench.base.digest,
        models={name: model.sha256 for name, model in previous.models.items()},
        invitations=invitations,
        shares=desk.lay_out(adapters | cuts.adapters, invitations),
        cuts=cuts.models,
        slots_rounds=_slots_rounds(round_keys, previous.models | cuts.models, bench),
        equal_ranks=not bench.may_lower_ranks,
        merges={name: model.merges for name, model in (previous.models | cuts.models).items() if model.merges},
        uplink_codec=config.exchange.uplink_codec,
        downlink_codec=config.exchange.downlink_codec,
        cohort_size=_wanted(bench, len(invitations)),
        # A round that hides its clients must not tell by failing that few or none were drawn.
        quorum=0 if PrivacyDesk(bench).is_on else config.cohort.quorum,
        rounds_done=previous.rounds_done,
        deadline_s=config.cohort.deadline_s,
        quality_metric=bench.quality_metric,
    )


def _held(client: str, round_keys: RoundKeys, previous: RoundRecord, bench: Workbench, cuts: "_Cuts") -> Held | None:
    """Return what the server holds of a lazy client, if that still fits what the client trains now."""
    held = previous.held.get(client)
    if held is None or not bench.is_lazy or held.model in cuts.models:  # a cut turns every slot into another one
        return None
    is_old = round_keys.round_index - held.round_index > bench.config.exchange.max_held_age
    fits = (held.rank, held.model) == (previous.ranks[client], previous.model_of(client))
    return held if fits and not is_old else None


def _cohort(round_keys: RoundKeys, previous: RoundRecord, bench: Workbench) -> Sequence[str]:
    config, privacy = bench.config, PrivacyDesk(bench)
    if privacy.is_on:
        secret = server_secret(read_settings().home, round_keys.run_id)
        return poisson_cohort(bench.clients, rate=privacy.rate, round_index=round_keys.round_index, seed=secret)
    wanted = config.cohort.cohort_size
    return selection(config.cohort.selection).cohort(
        bench.clients,
        previous.knowledge,
        size=wanted + config.cohort.overshoot if wanted else 0,
        draw=Draw(config.seed, round_keys.round_index),
        values=values_of(config.cohort.selection_options),
    )


def _wanted(bench: Workbench, invited: int) -> int:
    """Return how many updates end a round; one that hides its clients waits for all that were drawn."""
    if PrivacyDesk(bench).is_on:
        return max(1, invited)
    return min(bench.config.cohort.cohort_size or invited, invited)


@dataclass(frozen=True)
class _Cuts:
    models: dict[str, GlobalModel]
    adapters: dict[str, LoraAdapter]


def _recut(
    store: ObjectStore,
    round_keys: RoundKeys,
    previous: RoundRecord,
    bench: Workbench,
    adapters: Mapping[str, LoraAdapter],
) -> _Cuts:
    """Bring global adapters to the ranks that their clients have now, where those changed."""
    cuts = _Cuts({}, {})
    if bench.aggregator.rank != "largest":  # a bank or a history is larger than any client, on purpose
        return cuts
    for name, adapter in adapters.items():
        largest = max(rank for client, rank in previous.ranks.items() if previous.model_of(client) == name)
        ranks, before = bench.module_ranks(largest), previous.models[name]
        merges = before.merges
        if ranks and not adapter.pairs:  # so far the whole model was trained: low ranks start on what it became
            cut = bench.cut_to(bench.initial_adapter(previous.rounds_done), largest)
            merges = (*merges, whole_merge(store, round_keys.run_id, before))
        elif ranks and _is_due(adapter, ranks, previous, bench):
            cut = recut(adapter, ranks)
        else:
            continue
        written = write_adapter(store, round_keys, cut, bench.peft_config(cut), model=f"{name}-cut", merges=merges)
        cuts.models[name] = msgspec.structs.replace(written, version=before.version, slots_round=round_keys.round_index)
        cuts.adapters[name] = cut
    return cuts


def _slots_rounds(round_keys: RoundKeys, models: Mapping[str, GlobalModel], bench: Workbench) -> dict[str, int]:
    """Return since when slots are what they are, where they are not what they were in the first round."""
    if not bench.aggregator.keeps_slots:
        return dict.fromkeys(models, round_keys.round_index)
    return {name: model.slots_round for name, model in models.items() if model.slots_round}


def _is_due(adapter: LoraAdapter, ranks: Mapping[str, int], previous: RoundRecord, bench: Workbench) -> bool:
    too_small = any(adapter.ranks[path] < slots for path, slots in ranks.items())
    return bool(previous.rank_changes) or too_small or (bench.moves_ranks and adapter.ranks != ranks)


def _pending(store: ObjectStore, round_keys: RoundKeys, plan: RoundPlan) -> tuple[Ticket, ...]:
    if store.size(round_keys.collection) is not None:
        return ()
    attempts: dict[str, int] = {}
    finished = set()
    for found in store.list(round_keys.uplinks):
        if (parsed := round_keys.parse_uplink(found.key)) is None:
            continue
        client, attempt, name = parsed
        attempts[client] = max(attempts.get(client, 0), attempt)
        if name == keys.MANIFEST:
            finished.add(client)
    return tuple(
        Ticket(i.client_id, attempts.get(i.client_id, 0) + 1, i.pool)
        for i in plan.invitations
        if i.client_id not in finished
    )
