"""Records and adapters of a run in the object store: read with their digests checked, written once."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from infra.object_store import ObjectStore, commit
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import decode_adapter, encode_adapter, folder_files
from tasks.errors import IntegrityError, ObjectNotFoundError, RunNotFoundError
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL, RoundKeys
from tasks.rounds.records import (
    GlobalModel,
    Held,
    Merge,
    Record,
    RoundRecord,
    RunSpec,
    check_digest,
    decode,
    encode,
    sha256,
)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
R = TypeVar("R", bound=Record)


def commit_record(store: ObjectStore, key: str, record: R) -> R:
    """Write a record once; if the key is taken, the record that is there holds.

    Returns:
        The record under the key: this one, or the one an earlier try of the same step left.
    """
    existing = find_record(store, key, type(record))
    if existing is not None:
        return existing
    commit(store, key, encode(record))
    return record


def find_record(store: ObjectStore, key: str, kind: type[R]) -> R | None:
    """Read a record; None when there is none.

    Raises:
        IntegrityError: The object is not such a record.
    """
    try:
        return decode(kind, store.get(key), key)
    except ObjectNotFoundError:
        return None


def read_run(store: ObjectStore, run_id: str) -> RunSpec:
    """Read a run's frozen description.

    Raises:
        RunNotFoundError: The store holds no such run.
    """
    spec = find_record(store, keys.run_spec(run_id), RunSpec)
    if spec is None:
        raise RunNotFoundError(
            f"run {run_id!r}",
            f"is not in {store.url}",
            remedy="see `rankweave status` for the runs there are",
        )
    return spec


def read_records(store: ObjectStore, run_id: str) -> list[RoundRecord]:
    """Read all records of a run in order of rounds, stopping at the first gap.

    Raises:
        IntegrityError: A record does not continue the one before it.
    """
    records: list[RoundRecord] = []
    while (found := find_record(store, (key := RoundKeys(run_id, len(records)).record), RoundRecord)) is not None:
        expected = sha256(encode(records[-1])) if records else ""
        if found.previous_sha256 != expected:
            raise IntegrityError(
                key, "does not continue the record before it", got=found.previous_sha256, expected=expected
            )
        records.append(found)
    return records


def write_adapter(
    store: ObjectStore,
    round_keys: RoundKeys,
    adapter: LoraAdapter,
    config: Mapping[str, Any],
    *,
    model: str = GLOBAL,
    merges: tuple[Merge, ...] = (),
) -> GlobalModel:
    """Write a global adapter as a PEFT folder, the weights last.

    Args:
        store: Where to.
        round_keys: The round that made it.
        adapter: The adapter.
        config: Its `adapter_config.json`, save for ranks.
        model: Its name in the round.
        merges: The rounds whose merges are part of it.

    Returns:
        How records name it; no version yet.
    """
    files = folder_files(adapter, config)
    commit(store, round_keys.adapter(CONFIG, model), files[CONFIG])
    commit(store, round_keys.adapter(WEIGHTS, model), files[WEIGHTS])
    return GlobalModel(sha256=sha256(files[WEIGHTS]), round_index=round_keys.round_index, folder=model, merges=merges)


def find_adapter(
    store: ObjectStore, round_keys: RoundKeys, *, model: str = GLOBAL, merges: tuple[Merge, ...] = ()
) -> GlobalModel | None:
    """Find a global adapter that an earlier try of the round wrote; None when there is none.

    Args:
        store: Where.
        round_keys: The round.
        model: Its name in the round.
        merges: The rounds whose merges are part of it.
    """
    try:
        weights = store.get(round_keys.adapter(WEIGHTS, model))
    except ObjectNotFoundError:
        return None
    return GlobalModel(sha256=sha256(weights), round_index=round_keys.round_index, folder=model, merges=merges)


def read_adapter_files(store: ObjectStore, run_id: str, model: GlobalModel) -> dict[str, bytes]:
    """Read the PEFT folder of a global adapter.

    Raises:
        IntegrityError: The weights are not those the record names.
    """
    round_keys = RoundKeys(run_id, model.round_index)
    key = round_keys.adapter(WEIGHTS, model.folder)
    weights = check_digest(store.get(key), model.sha256, key)
    return {WEIGHTS: weights, CONFIG: store.get(round_keys.adapter(CONFIG, model.folder))}


def read_adapter(store: ObjectStore, run_id: str, model: GlobalModel) -> LoraAdapter:
    """Read a global adapter."""
    key = RoundKeys(run_id, model.round_index).adapter(WEIGHTS, model.folder)
    return decode_adapter(check_digest(store.get(key), model.sha256, key))


def write_held(store: ObjectStore, round_keys: RoundKeys, client_id: str, step: LoraAdapter) -> str:
    """Write the step that a lazy client brought in a round.

    Returns:
        Its digest.
    """
    data = encode_adapter(step)
    commit(store, round_keys.held(client_id), data)
    return sha256(data)


def read_held(store: ObjectStore, run_id: str, client_id: str, held: Held) -> LoraAdapter:
    """Read the step that the server holds of a lazy client.

    Raises:
        IntegrityError: It is not the one that the record names.
    """
    key = RoundKeys(run_id, held.round_index).held(client_id)
    return decode_adapter(check_digest(store.get(key), held.sha256, key))


def quarantine(store: ObjectStore, key: str, reason: str, detail: str) -> None:
    """Write down why an update was refused, beside nothing that counts."""
    store.put(key, json.dumps({"reason": reason, "detail": detail}, sort_keys=True).encode())


def write_json(store: ObjectStore, key: str, value: Mapping[str, object]) -> None:
    """Write down what nothing rests on: it may be written again."""
    store.put(key, json.dumps(value, sort_keys=True).encode())


def read_json(store: ObjectStore, key: str) -> dict[str, Any]:
    """Read what `write_json` wrote; empty when there is nothing."""
    try:
        return json.loads(store.get(key))
    except ObjectNotFoundError:
        return {}


def list_run_ids(store: ObjectStore) -> list[str]:
    """List the runs in a store, sorted."""
    parts = (found.key.split("/") for found in store.list("runs/"))
    return sorted({part[1] for part in parts if len(part) == 3 and part[2] == "run.json"})
