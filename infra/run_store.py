"""Records and adapters of a run in the object store: read with their digests checked, written once."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from infra.object_store import ObjectStore, commit
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import decode_adapter, folder_files
from tasks.errors import IntegrityError, ObjectNotFoundError, RunNotFoundError
from tasks.rounds import keys
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Record, RoundRecord, RunSpec, check_digest, decode, encode, sha256

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


def write_adapter(store: ObjectStore, round_keys: RoundKeys, adapter: LoraAdapter, config: Mapping[str, Any]) -> str:
    """Write a global adapter as a PEFT folder, the weights last.

    Returns:
        SHA-256 of the weights file, which is the adapter's name in records.
    """
    files = folder_files(adapter, config)
    commit(store, round_keys.adapter(CONFIG), files[CONFIG])
    commit(store, round_keys.adapter(WEIGHTS), files[WEIGHTS])
    return sha256(files[WEIGHTS])


def read_adapter_files(store: ObjectStore, record: RoundRecord) -> dict[str, bytes]:
    """Read the PEFT folder of the global adapter that a record names.

    Raises:
        IntegrityError: The weights are not those the record names.
    """
    round_keys = RoundKeys(record.run_id, record.global_round)
    weights = store.get(round_keys.adapter(WEIGHTS))
    check_digest(weights, record.global_sha256, round_keys.adapter(WEIGHTS))
    return {WEIGHTS: weights, CONFIG: store.get(round_keys.adapter(CONFIG))}


def read_adapter(store: ObjectStore, record: RoundRecord) -> LoraAdapter:
    """Read the global adapter that a record names."""
    return decode_adapter(read_adapter_files(store, record)[WEIGHTS])


def quarantine(store: ObjectStore, key: str, reason: str, detail: str) -> None:
    """Write down why an update was refused, beside nothing that counts."""
    store.put(key, json.dumps({"reason": reason, "detail": detail}, sort_keys=True).encode())


def list_run_ids(store: ObjectStore) -> list[str]:
    """List the runs in a store, sorted."""
    parts = (found.key.split("/") for found in store.list("runs/"))
    return sorted({part[1] for part in parts if len(part) == 3 and part[2] == "run.json"})
