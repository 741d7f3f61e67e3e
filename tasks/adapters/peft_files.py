"""LoRA adapters as PEFT names and stores them: state dicts, one safetensors blob, a folder of two files.

Everything written here has its scaling folded into B (scaling 1), so any reader that knows PEFT's format gets the same
update. Not here: what the config means (`peft_config`), how bytes are checked (`blob`), how keys are spelled
(`peft_keys`, whose two public functions are part of this module's face).
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.adapters.blob import from_blob, to_blob
from tasks.adapters.lora import LoraAdapter, fold_scaling
from tasks.adapters.peft_config import config_for, config_json, declared_layers, parse_config
from tasks.adapters.peft_keys import assemble, from_state_dict, to_state_dict, with_scalings
from tasks.errors import AdapterFormatError, ConfigError, UnsupportedAdapterError

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "PeftFolder",
    "decode_adapter",
    "encode_adapter",
    "folder_files",
    "from_state_dict",
    "read_adapter",
    "to_state_dict",
    "write_adapter",
]

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

_PICKLE_FILE = "adapter_model.bin"


@dataclass(frozen=True, eq=False)
class PeftFolder:
    """A PEFT adapter folder once read.

    Args:
        adapter: The adapter, each pair with the scaling that the config gives it.
        config: The content of `adapter_config.json`.
    """

    adapter: LoraAdapter
    config: Mapping[str, Any]


def encode_adapter(adapter: LoraAdapter, metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise an adapter as one safetensors blob with PEFT's keys.

    Args:
        adapter: Any adapter; its scaling is folded into B.
        metadata: Text to carry in the header.

    Returns:
        The blob [bytes], the same for the same adapter and metadata.
    """
    return to_blob(to_state_dict(fold_scaling(adapter)), metadata)


def decode_adapter(data: bytes, *, subject: str = "adapter blob") -> LoraAdapter:
    """Read what `encode_adapter` wrote, trusting nothing.

    Args:
        data: The blob.
        subject: Whom to name in errors.

    Returns:
        The adapter, scaling 1.

    Raises:
        AdapterFormatError: Truncated or garbled, an impossible header, or tensors that form no LoRA adapter.
    """
    return assemble(from_blob(data, subject), subject)


def folder_files(adapter: LoraAdapter, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the two files of a PEFT folder, byte for byte the same for the same input.

    Args:
        adapter: Any adapter with at least one module; its scaling is folded into B.
        config: What to say beside ranks and scalings, as in `write_adapter`.

    Returns:
        File name -> content.

    Raises:
        AdapterFormatError: No module, or a config that JSON cannot hold.
        UnsupportedAdapterError: The config asks for a LoRA variant that has no correct aggregate here.
    """
    return {
        CONFIG_FILE: config_json(config_for(adapter.ranks, config)),
        WEIGHTS_FILE: encode_adapter(adapter),
    }


def read_adapter(folder: Path) -> PeftFolder:
    """Read a PEFT LoRA folder, resolving rank and scaling per module as PEFT does.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The adapter with its scalings, and the config.

    Raises:
        AdapterFormatError: A file is missing or damaged, or config and tensors disagree about a rank.
        UnsupportedAdapterError: Pickled weights only, DoRA, `lora_bias`, a grouped convolution, another PEFT method.
    """
    config = parse_config(_read(folder, CONFIG_FILE), str(folder / CONFIG_FILE))
    weights = str(folder / WEIGHTS_FILE)
    adapter = assemble(from_blob(_read(folder, WEIGHTS_FILE), weights), weights)
    layers = declared_layers(config, adapter.pairs, str(folder / CONFIG_FILE))
    for path, pair in adapter.pairs.items():
        if pair.rank != layers[path][0]:
            raise AdapterFormatError(
                f"{weights}, module {path}",
                "rank is not the one in " + CONFIG_FILE,
                got=pair.rank,
                expected=layers[path][0],
                remedy="the two files belong to different adapters; save the adapter again",
            )
    return PeftFolder(with_scalings(adapter, {path: scaling for path, (_, scaling) in layers.items()}), config)


def write_adapter(folder: Path, adapter: LoraAdapter, config: Mapping[str, Any]) -> None:
    """Write a PEFT LoRA folder that `PeftModel.from_pretrained` loads with the same update; all of it or nothing.

    Args:
        folder: A new or empty folder.
        adapter: Any adapter with at least one module; its scaling is folded into B.
        config: Kept as it is (base model, task type, target modules, modules to save, bias, ...), save for ranks,
            alphas, their patterns and rsLoRA, which are made to fit the adapter.

    Raises:
        ConfigError: The folder holds something already, or cannot be written.
        AdapterFormatError: No module, or a config that JSON cannot hold.
        UnsupportedAdapterError: The config asks for a LoRA variant that has no correct aggregate here.
    """
    files = folder_files(adapter, config)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"folder {folder}", "exists and is not empty", remedy="name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
            ready = Path(staging) / "ready"
            ready.mkdir()
            for name, data in files.items():
                _write_synced(ready / name, data)
            ready.replace(folder)
    except OSError as error:
        raise ConfigError(
            f"folder {folder}", f"cannot be written ({error.strerror})", remedy="name a new folder you may write to"
        ) from error


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        if name == WEIGHTS_FILE and (folder / _PICKLE_FILE).exists():
            raise UnsupportedAdapterError(
                str(folder),
                f"holds pickled weights only ({_PICKLE_FILE}); reading a pickle can run any code",
                expected=WEIGHTS_FILE,
                remedy="where you trust it, save it again with PEFT's safe_serialization=True",
            ) from error
        raise AdapterFormatError(
            str(folder / name),
            f"cannot be read ({error.strerror})",
            expected=f"a PEFT folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
            remedy="check the path; save_pretrained writes both files",
        ) from error


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
