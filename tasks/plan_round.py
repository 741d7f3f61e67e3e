"""Verb: decide who trains what in a round, and lay out the shares to download."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from prefect import task

from configs.privacy_desk import PrivacyDesk
from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import ObjectStore, commit, open_store
from infra.run_store import commit_record, find_record, read_adapter, write_adapter
from infra.server_secret import server_secret
from infra.settings import read_settings
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.thin import thin
from tasks.aggregators.shares import recut
from tasks.codecs.table import codec
from tasks.cohorts.poisson import poisson_cohort
from tasks.cohorts.sampling import sample_cohort
from tasks.errors import IntegrityError
from tasks.rounds import keys
from tasks.rounds.capabilities import Limit
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import GlobalModel, Invitation, RoundPlan, RoundRecord, Share, sha256
from tasks.rounds.seeds import derive_nonce
from tasks.rounds.steps import PlannedRound, Ticket
from tasks.rounds.summary import RunHandle


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
    return PlannedRound(plan, _pending(store, round_keys, plan))


def _plan(store: ObjectStore, round_keys: RoundKeys, previous: RoundRecord, bench: Workbench) -> RoundPlan:
    config = bench.config
    cohort = _cohort(round_keys, bench)
    invitations = tuple(
        Invitation(
            client_id=client,
            rank=previous.ranks[client],
            nonce=derive_nonce(round_keys.run_id, round_keys.round_index, client),
            pool=config.dispatch.mode,
            model=previous.model_of(client),
            batch_size=previous.limits.get(client, Limit()).batch_size,
        )
        for client in cohort
    )
    adapters = {name: read_adapter(store, round_keys.run_id, model) for name, model in previous.models.items()}
    cuts = _recut(store, round_keys, previous, bench, adapters)
    return RoundPlan(
        run_id=round_keys.run_id,
        round_index=round_keys.round_index,
        base_digest=bench.base.digest,
        models={name: model.sha256 for name, model in previous.models.items()},
        invitations=invitations,
        shares=_cut_shares(store, round_keys, adapters | cuts.adapters, bench, invitations),
        cuts=cuts.models,
        equal_ranks=not bench.may_lower_ranks,
        merges={name: model.merges for name, model in previous.models.items() if model.merges},
        uplink_codec=config.exchange.uplink_codec,
        downlink_codec=config.exchange.downlink_codec,
        cohort_size=_wanted(bench, len(invitations)),
        # A round that hides its clients must not tell by failing that few or none were drawn.
        quorum=0 if PrivacyDesk(bench).is_on else config.cohort.quorum,
        rounds_done=previous.rounds_done,
        deadline_s=config.cohort.deadline_s,
        quality_metric=bench.quality_metric,
    )


def _cohort(round_keys: RoundKeys, bench: Workbench) -> Sequence[str]:
    config, privacy = bench.config, PrivacyDesk(bench)
    if privacy.is_on:
        secret = server_secret(read_settings().home, round_keys.run_id)
        return poisson_cohort(bench.clients, rate=privacy.rate, round_index=round_keys.round_index, seed=secret)
    return sample_cohort(
        bench.clients,
        cohort_size=config.cohort.cohort_size,
        overshoot=config.cohort.overshoot,
        round_index=round_keys.round_index,
        seed=config.seed,
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
        ranks = bench.module_ranks(largest)
        too_small = any(adapter.ranks[path] < slots for path, slots in ranks.items())
        if not (previous.rank_changes or too_small or (bench.moves_ranks and adapter.ranks != ranks)):
            continue
        cut = recut(adapter, ranks)
        before = previous.models[name]
        written = write_adapter(
            store, round_keys, cut, bench.peft_config(cut), model=f"{name}-cut", merges=before.merges
        )
        cuts.models[name] = msgspec.structs.replace(written, version=before.version)
        cuts.adapters[name] = cut
    return cuts


def _cut_shares(
    store: ObjectStore,
    round_keys: RoundKeys,
    adapters: Mapping[str, LoraAdapter],
    bench: Workbench,
    invitations: tuple[Invitation, ...],
) -> dict[str, Share]:
    """Write one object per model and distinct rank, not per client."""
    cut, parts = bench.aggregator.share, bench.exchange.downlink
    encode = codec(bench.config.exchange.downlink_codec).encode
    shares = {}
    for invitation in invitations:
        if invitation.share_name in shares:
            continue
        ranks = bench.module_ranks(invitation.rank)
        data, _ = encode(thin(cut(adapters[invitation.model], ranks), parts), None, None)
        key = round_keys.share(invitation.rank, invitation.model)
        commit(store, key, data)
        shares[invitation.share_name] = Share(key=key, sha256=sha256(data), num_bytes=len(data), ranks=ranks)
    return shares


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
