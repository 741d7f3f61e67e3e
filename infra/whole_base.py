"""The whole model that a run trained before its low ranks: it stands in place of the base model's own tensors."""

from infra.object_store import ObjectStore
from infra.run_store import CONFIG, WEIGHTS
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import decode_adapter
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import GlobalModel, Merge, check_digest


def whole_merge(store: ObjectStore, run_id: str, model: GlobalModel) -> Merge:
    """Return a whole model as what every client puts into its base, from the object that lies there already.

    Args:
        store: Where it lies.
        run_id: The run.
        model: A global adapter without pairs.
    """
    key = RoundKeys(run_id, model.round_index).adapter(WEIGHTS, model.folder)
    num_bytes = len(check_digest(store.get(key), model.sha256, key))
    return Merge(round_index=model.round_index, key=key, sha256=model.sha256, num_bytes=num_bytes, whole=True)


def whole_models(store: ObjectStore, model: GlobalModel) -> dict[str, LoraAdapter]:
    """Read what a global adapter stands on instead of the base model; nothing where that is the base model itself.

    Returns:
        Additions as `Workbench.base_with` takes them.

    Raises:
        IntegrityError: It is not the one that the record names.
    """
    whole = [merge for merge in model.merges if merge.whole]
    return {
        f"{merge.round_index}/{merge.sha256}": decode_adapter(_checked(store, merge), subject=merge.key)
        for merge in whole
    }


def whole_folder(store: ObjectStore, model: GlobalModel) -> dict[str, bytes]:
    """Read the PEFT folder of what a global adapter stands on; empty where that is the base model itself.

    Raises:
        IntegrityError: It is not the one that the record names.
    """
    whole = [merge for merge in model.merges if merge.whole]
    if not whole:
        return {}
    folder = whole[-1].key.removesuffix(WEIGHTS)
    return {WEIGHTS: _checked(store, whole[-1]), CONFIG: store.get(folder + CONFIG)}


def _checked(store: ObjectStore, merge: Merge) -> bytes:
    return check_digest(store.get(merge.key), merge.sha256, merge.key)
