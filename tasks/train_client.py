"""Verb: one client's work in one round, from its share to its committed update."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import ObjectStore, commit, open_store
from infra.private_state import PrivateState
from infra.run_store import find_record
from infra.settings import read_settings
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.thin import thin
from tasks.codecs.table import codec
from tasks.cohorts.probe import Measured, capability_of
from tasks.errors import BaseModelMismatchError, ConfigError, RunNotFoundError
from tasks.local_work import Effort, LocalWork, ShouldStop, Trained
from tasks.rounds import keys
from tasks.rounds.capabilities import Capability
from tasks.rounds.exchange import MERGE_CODEC
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import (
    ClientFailure,
    Invitation,
    Lowered,
    Merge,
    RoundPlan,
    UpdateManifest,
    check_digest,
    encode,
    finite_only,
    sha256,
)
from tasks.training.models import BaseModel

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

    Returns:
        The committed manifest; that of an earlier try of the same attempt, if it got so far.

    Raises:
        RunNotFoundError: The round has no plan.
        ConfigError: The client is not invited.
        BaseModelMismatchError: The client holds another base model than the plan names.
        TrainingDivergedError: The loss stopped being a number.
        ClientMemoryError: Memory does not hold the training, at half the rank and half the batch neither.
    """
    store = open_store(store_url)
    round_keys = RoundKeys(run_id, round_index)
    manifest_key = round_keys.uplink(client_id, attempt, keys.MANIFEST)
    if (existing := find_record(store, manifest_key, UpdateManifest)) is not None:
        return existing
    plan = _plan(store, round_keys)
    invitation = _invitation(plan, client_id, bench)
    share = plan.share_of(invitation)
    message, download_s = _timed(lambda: check_digest(store.get(share.key), share.sha256, share.key))
    start_at = partial(_start, plan, invitation, bench, codec(plan.downlink_codec).decode(message, None))
    private = PrivateState(read_settings().home, run_id, client_id)
    errand = f"round {round_index}, attempt {attempt}"
    base, fetched = _base(store, plan.merges_of(invitation), bench, private, errand)
    work = LocalWork(bench, base, private, round_index, client_id, should_stop, plan.rounds_done)
    trained = work.train_within_memory(start_at, Effort(invitation.rank, invitation.batch_size))
    trainings, metrics = [trained], dict(trained.metrics)
    if bench.config.training.keeps_personal:
        personal = work.train_personal(start_at(trained.effort.rank), trained.effort)
        trainings.append(personal)
        metrics |= {f"personal_{name}": value for name, value in personal.metrics.items()}
    thinned = thin(trained.adapter, bench.exchange.uplink)
    data, _ = codec(plan.uplink_codec).encode(thinned, start_at(trained.rank), None)
    update_key = round_keys.uplink(client_id, attempt, keys.UPDATE)
    _, upload_s = _timed(lambda: commit(store, update_key, data))
    transfers = Transfers(len(message), download_s, len(data), upload_s)
    manifest = UpdateManifest(
        run_id=run_id,
        round_index=round_index,
        client_id=client_id,
        attempt=attempt,
        nonce=invitation.nonce,
        base_digest=bench.base.digest,
        share_sha256=share.sha256,
        update_sha256=sha256(data),
        update_bytes=len(data),
        num_examples=trained.result.num_examples,
        num_steps=trained.result.num_steps,
        training_s=trained.result.seconds,
        metrics=finite_only(metrics),
        fetched=fetched,
        rank=trained.rank if trained.rank < invitation.rank else 0,
        lowered=_lowered(trained, invitation),
        batch_size=trained.effort.batch_size,
        capability=bench.as_simulated(client_id, _capability(trainings, transfers, bench)),
    )
    commit(store, manifest_key, encode(manifest))
    return manifest


def report_failure(
    store: ObjectStore, round_keys: RoundKeys, *, client_id: str, attempt: int, error: Exception
) -> None:
    """Tell the server that no update will come, so that it need not wait for the deadline.

    Args:
        store: Where to write.
        round_keys: The round.
        client_id: Who failed.
        attempt: Which try.
        error: Why.
    """
    failure = ClientFailure(client_id=client_id, attempt=attempt, reason=type(error).__name__, detail=str(error))
    store.put(round_keys.uplink(client_id, attempt, keys.FAILURE), encode(failure))


def _plan(store: ObjectStore, round_keys: RoundKeys) -> RoundPlan:
    plan = find_record(store, round_keys.plan, RoundPlan)
    if plan is None:
        raise RunNotFoundError(
            f"run {round_keys.run_id}, round {round_keys.round_index}",
            "has no plan",
            remedy="start the run on the server first",
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
    raise ConfigError(f"client {client_id!r}", f"is not invited to round {plan.round_index} of {plan.run_id}")


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


def _start(plan: RoundPlan, invitation: Invitation, bench: Workbench, share: LoraAdapter, rank: int) -> LoraAdapter:
    """Return what a client starts from: its whole share, or less of it where it takes on a lower rank."""
    return bench.exchange.start(plan, invitation, share, rank if rank < invitation.rank else 0)


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
        additions[f"{merge.round_index}/{merge.sha256}"] = codec(MERGE_CODEC).decode(data, None)
        fetched += [merge.round_index] if is_new else []
    return bench.base_with(additions), tuple(fetched)
