"""Verb: one client's work in one round, from its share to its committed update."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.metered_store import Meter, MeteredStore
from infra.object_store import ObjectStore, commit, open_store
from infra.private_state import PrivateState
from infra.run_store import find_record
from infra.settings import read_settings
from tasks.adapters.lora import LoraAdapter
from tasks.codecs.codec import Trip
from tasks.cohorts.probe import Measured, capability_of
from tasks.errors import BaseModelMismatchError, ConfigError, RunNotFoundError
from tasks.local_work import Effort, LocalWork, ShouldStop, Trained
from tasks.rounds import keys
from tasks.rounds.capabilities import Capability
from tasks.rounds.exchange import EXACT
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import (
    ClientFailure,
    Invitation,
    Lowered,
    Merge,
    RoundPlan,
    UpdateManifest,
    encode,
    finite_only,
)
from tasks.shares import fetch_share
from tasks.training.models import BaseModel
from tasks.uplink import Uplink

T = TypeVar("T")


@task(name="train-client", task_run_name="train {client_id}", **task_options())
def train_client(  # noqa: PLR0913  # what names one client run, and the two things a warm process adds
    store_url: str,
    run_id: str,
    *,
    round_index: int,
    client_id: str,
    attempt: int,
    bench: Workbench,
    should_stop: ShouldStop,
    meter: Meter | None = None,
) -> UpdateManifest:
    """Download the share, train on local data, upload the update, and commit it with its manifest last.

    Args:
        store_url: Where adapters are exchanged.
        run_id: The run.
        round_index: The round.
        client_id: Who trains.
        attempt: Which try.
        bench: The client's data and base model.
        should_stop: Asked at every step; an error it returns ends the training.
        meter: What this attempt moved before; a fresh one unless given.

    Returns:
        The committed manifest; that of an earlier try of the same attempt, if it got so far.

    Raises:
        RunNotFoundError: The client has no part in a plan of the round: nothing is planned, or it is not invited.
        ConfigError: Its part of the plan is another client's.
        BaseModelMismatchError: The client holds another base model than the plan names.
        TrainingDivergedError: The loss stopped being a number.
        ClientMemoryError: Memory does not hold the training, at half the rank and half the batch neither.
    """
    meter = meter or Meter()
    store = MeteredStore(open_store(store_url), meter)
    round_keys = RoundKeys(run_id, round_index)
    manifest_key = round_keys.uplink(client_id, attempt, keys.MANIFEST)
    if (existing := find_record(store, manifest_key, UpdateManifest)) is not None:
        return existing
    plan = _plan(store, round_keys, client_id)
    bench = bench.stage(plan.rounds_done)
    invitation = _invitation(plan, client_id, bench)
    private = PrivateState(read_settings().home, run_id, client_id)
    fetched_share, download_s = _timed(lambda: fetch_share(store, plan, invitation, bench, private))
    start_at = partial(bench.exchange(plan).start, plan, invitation, fetched_share.message)
    errand = f"round {round_index}, attempt {attempt}"
    base, fetched = _base(store, plan.merges_of(invitation), bench, private, errand)
    work = LocalWork(bench, base, private, round_index, client_id, should_stop, plan.rounds_done)
    trained, *others = trainings = _trainings(work, start_at, invitation)
    metrics = trained.metrics | {f"personal_{name}": v for one in others for name, v in one.metrics.items()}
    outgoing = Uplink(bench, plan, invitation, private).prepare(
        trained.adapter, start_at(trained.rank), is_lowered=trained.rank < invitation.rank
    )
    update_key = round_keys.uplink(client_id, attempt, keys.UPDATE)
    _, upload_s = _timed(lambda: None if outgoing.skipped else commit(store, update_key, outgoing.data))
    transfers = Transfers(fetched_share.num_bytes, download_s, len(outgoing.data), upload_s)
    manifest = UpdateManifest(
        run_id=run_id,
        round_index=round_index,
        client_id=client_id,
        attempt=attempt,
        nonce=invitation.nonce,
        base_digest=bench.base.digest,
        share_sha256=plan.share_of(invitation).sha256,
        update_sha256=outgoing.sha256,
        update_bytes=len(outgoing.data),
        held_sha256=outgoing.held_sha256,
        skipped=outgoing.skipped,
        num_examples=trained.result.num_examples,
        num_steps=trained.result.num_steps,
        training_s=trained.result.seconds,
        metrics=finite_only(metrics),
        fetched=fetched,
        rank=trained.rank if trained.rank < invitation.rank else 0,
        lowered=_lowered(trained, invitation),
        batch_size=trained.effort.batch_size,
        capability=bench.as_simulated(client_id, _capability(trainings, transfers, bench)),
        downloaded=meter.downloaded,
        uploaded=meter.uploaded,
    )
    if not bench.loses(round_index, client_id):  # a simulated loss: sent and paid for, but nobody will know of it
        commit(store, manifest_key, encode(manifest))
    return manifest


def report_failure(
    store: ObjectStore, round_keys: RoundKeys, *, client_id: str, attempt: int, error: Exception, meter: Meter
) -> None:
    """Tell the server that no update will come, so that it need not wait for the deadline.

    Args:
        store: Where to write.
        round_keys: The round.
        client_id: Who failed.
        attempt: Which try.
        error: Why.
        meter: What the attempt moved.
    """
    failure = ClientFailure(
        client_id=client_id,
        attempt=attempt,
        reason=type(error).__name__,
        detail=str(error),
        downloaded=meter.downloaded,
        uploaded=meter.uploaded,
    )
    store.put(round_keys.uplink(client_id, attempt, keys.FAILURE), encode(failure))


def _trainings(work: LocalWork, start_at: Callable[[int], LoraAdapter], invitation: Invitation) -> tuple[Trained, ...]:
    """Train what will be sent, and then what stays here, where the run has clients keep an adapter of their own."""
    trained = work.train_within_memory(start_at, Effort(invitation.rank, invitation.batch_size))
    if not work.bench.config.training.keeps_personal:
        return (trained,)
    return trained, work.train_personal(start_at(trained.effort.rank), trained.effort)


def _plan(store: ObjectStore, round_keys: RoundKeys, client_id: str) -> RoundPlan:
    plan = find_record(store, round_keys.part(client_id), RoundPlan)
    if plan is None:
        raise RunNotFoundError(
            f"client {client_id}, run {round_keys.run_id}, round {round_keys.round_index}",
            "has no invitation",
            remedy="start the run on the server first; a client trains only in rounds it is invited to",
        )
    return plan


def _invitation(plan: RoundPlan, client_id: str, bench: Workbench) -> Invitation:
    if plan.base_digest != bench.base.digest:
        raise BaseModelMismatchError(
            f"client {client_id}, round {plan.round_index}",
            "holds another base model than the plan names",
            got=bench.base.digest,
            expected=plan.base_digest,
            remedy="install the base model of the run",
        )
    for invitation in plan.invitations:
        if invitation.client_id == client_id:
            return invitation
    raise ConfigError(
        f"client {client_id}, run {plan.run_id}, round {plan.round_index}",
        "has another client's part of the plan",
        got=", ".join(invitation.client_id for invitation in plan.invitations) or "nobody's",
        remedy="somebody changed this run's plans; restore them or start a new run",
    )


@dataclass(frozen=True)
class Transfers:
    """What a client's share and update took on the way.

    Args:
        download_bytes: Size of the share [bytes].
        download_s: Time it took [s].
        upload_bytes: Size of the update [bytes].
        upload_s: Time it took [s].
    """

    download_bytes: int
    download_s: float
    upload_bytes: int
    upload_s: float


def _capability(trainings: Sequence[Trained], transfers: Transfers, bench: Workbench) -> Capability:
    """Say what this machine can do, from all that was trained in the round; memory from the first training."""
    first, neighbours = trainings[0], bench.config.dispatch.clients_at_once
    measured = Measured(
        num_examples=first.result.num_examples,
        num_items=sum(one.result.num_items for one in trainings),
        base_values=bench.base.num_parameters,
        trained_values=bench.values(first.effort.rank),
        training_s=sum(one.result.seconds for one in trainings),
        free_bytes=first.free_bytes // neighbours,
        peak_bytes=first.peak_bytes if neighbours == 1 else 0,  # measured for the whole process
        **asdict(transfers),
    )
    return capability_of(measured)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Do something, and say how long it took [s]."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _lowered(trained: Trained, invitation: Invitation) -> Lowered:
    if trained.rank < trained.effort.rank:
        return "pruned"
    return "memory" if trained.effort.rank < invitation.rank else ""


def _base(
    store: ObjectStore, merges: tuple[Merge, ...], bench: Workbench, private: PrivateState, errand: str
) -> tuple[BaseModel, tuple[int, ...]]:
    """Bring the client's base model up to date, downloading only the merges that it has not seen yet."""
    additions, fetched = {}, []
    for merge in merges:
        data, is_new = private.cached(merge.sha256, partial(store.get, merge.key), errand=errand)
        additions[f"{merge.round_index}/{merge.sha256}"] = EXACT.decode(data, None, Trip(merge.round_index, 0))
        fetched += [merge.round_index] if is_new else []
    return bench.base_with(additions), tuple(fetched)
