"""What a model version holds on disk: a PEFT directory, and the base model by reference.

What lives here: writing that folder the way `mlflow.pyfunc` wants it. What does not: where it goes
(`model_registry`), how it predicts (`serving`).
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import AdapterFormatError

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
BASE_FILE = "base.json"
WHOLE_PREFIX = "whole/"
"""What the files of a second PEFT folder begin with: a whole model, which is merged into the base model first."""
DEFAULT_MAX_NEW_TOKENS = 64

# Written out, not inferred: MLflow would load the model in another process to find them, at every round.
# Rankweave's own requirements bring the rest; MLflow checks each name that stands here, at every round.
_REQUIREMENTS = ("rankweave", "torch", "peft", "transformers")

_LOADED_BY_HAND = """The adapter in `adapter` does not stand on the base model of `base.json` itself, but on what
federated training made of it first, which is in `whole`. `mlflow.pyfunc.load_model` sees to that. By hand:

    base = PeftModel.from_pretrained(base, "whole").merge_and_unload()
    model = PeftModel.from_pretrained(base, "adapter")
"""


def adapter_digest(adapter_files: Mapping[str, bytes]) -> str:
    """Return the digest that names an adapter.

    Args:
        adapter_files: The PEFT directory: file name -> content; names that begin with `WHOLE_PREFIX` are those of the
            whole model that the adapter stands on.

    Returns:
        SHA-256 of `adapter_model.safetensors` in hex, as `sha256sum` prints it.

    Raises:
        AdapterFormatError: The files are not those of a PEFT directory.
    """
    whole = _whole_files(adapter_files)
    folders = [adapter_files, whole] if whole else [adapter_files]
    missing = [name for folder in folders for name in (WEIGHTS_FILE, CONFIG_FILE) if name not in folder]
    nested = [name for name in adapter_files if Path(name).name != name.removeprefix(WHOLE_PREFIX)]
    if missing or nested:
        raise AdapterFormatError(
            "adapter to publish",
            "not the files of a PEFT directory",
            got=", ".join(sorted(adapter_files)) or "no files",
            expected=f"{WEIGHTS_FILE} and {CONFIG_FILE}",
        )
    return hashlib.sha256(adapter_files[WEIGHTS_FILE]).hexdigest()


def build_model(
    folder: Path, adapter_files: Mapping[str, bytes], *, base_spec: Mapping[str, object], base_digest: str
) -> Path:
    """Write a pyfunc model: the PEFT directory and `base.json` under `data/rankweave`, the whole model beside them.

    Args:
        folder: An empty folder to work in.
        adapter_files: As `adapter_digest` takes them.
        base_spec: Fields of `BaseModelSpec`.
        base_digest: Digest of the base's weights.

    Returns:
        The model's folder.

    Raises:
        AdapterFormatError: The files are not those of a PEFT directory.
    """
    with warnings.catch_warnings():
        # On its first import MLflow warns about type hints of its own.
        warnings.filterwarnings("ignore", message=".*inferred as AnyType", category=UserWarning)
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

    base = {"spec": dict(base_spec), "digest": base_digest, "adapter_sha256": adapter_digest(adapter_files)}
    data = folder / "rankweave"
    whole = _whole_files(adapter_files)
    _write(data / "adapter", {name: content for name, content in adapter_files.items() if Path(name).name == name})
    if whole:
        base["whole_sha256"] = adapter_digest(whole)
        _write(data / "whole", whole)
        (data / "README.md").write_text(_LOADED_BY_HAND, encoding="utf-8")
    (data / BASE_FILE).write_text(json.dumps(base, indent=2, sort_keys=True), encoding="utf-8")
    save_model(
        folder / "model",
        loader_module="infra.serving",
        data_path=str(data),
        pip_requirements=[_pinned(name) for name in _REQUIREMENTS],
        mlflow_model=Model(signature=_signature(base_spec.get("kind"))),
        # Only what is named here may be set at load time: load_model(uri, model_config={...}).
        model_config={"base_location": str(base_spec.get("location", ""))},
    )
    return folder / "model"


def _whole_files(adapter_files: Mapping[str, bytes]) -> dict[str, bytes]:
    named = ((name, content) for name, content in adapter_files.items() if name.startswith(WHOLE_PREFIX))
    return {name.removeprefix(WHOLE_PREFIX): content for name, content in named}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _pinned(name: str) -> str:
    # A build such as 2.13.0+cpu is in no package index under that name.
    return f"{name}=={installed_version(name).partition('+')[0]}"


def _signature(kind: object) -> "ModelSignature | None":
    # Only text generation has parameters, and without a schema MLflow drops them with a warning. The other
    # kinds take frames, arrays and lists alike, which no schema can say.
    if kind != "causal_lm":
        return None
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    length = ParamSpec("max_new_tokens", DataType.long, DEFAULT_MAX_NEW_TOKENS)
    return ModelSignature(params=ParamSchema([length]))
