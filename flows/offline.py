"""Adapters on disk, no servers and no config: weave several, or resize one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.adapters.peft_files import PeftFolder, read_adapter, write_adapter
from tasks.adapters.resize import resize
from tasks.aggregators.table import aggregate, aggregator
from tasks.errors import BaseModelMismatchError, ConfigError


def aggregate_folders(method: str, arguments: Sequence[str], *, rank: int | None, out: str) -> dict[str, Any]:
    """Weave PEFT adapter folders into one.

    Args:
        method: Name of an aggregator.
        arguments: "DIR=NUM_EXAMPLES" each.
        rank: Rank of the result; None for the largest present.
        out: New folder.

    Returns:
        What was written, and "text" to print.

    Raises:
        UnknownNameError: No such aggregator.
        ConfigError: An argument is not of that form, or the folder exists.
        AdapterFormatError: A folder is not a PEFT LoRA adapter.
        BaseModelMismatchError: Folders name different base models or tasks.
    """
    aggregator(method)
    target = _new_folder(out)
    named = dict(_parse(argument) for argument in arguments)
    if len(named) != len(arguments):
        raise ConfigError("adapters", "the same folder is given twice")
    folders = {path: read_adapter(path) for path in sorted(named)}
    config = _common_config(folders)
    woven = aggregate(method, [folders[path].adapter for path in folders], [named[path] for path in folders])
    if rank is not None:
        woven = resize(woven, rank)
    write_adapter(target, woven, config)
    return _report(target, woven.ranks, f"{method} of {len(folders)} adapters")


def resize_folder(folder: str, *, rank: int, out: str) -> dict[str, Any]:
    """Write the rank-R share of a PEFT adapter folder.

    Args:
        folder: The adapter.
        rank: Rank of the result.
        out: New folder.

    Returns:
        What was written, and "text" to print.
    """
    target = _new_folder(out)
    source = read_adapter(Path(folder))
    resized = resize(source.adapter, rank)
    write_adapter(target, resized, source.config)
    return _report(target, resized.ranks, f"{folder} at rank {rank}")


def _new_folder(out: str) -> Path:
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out {out}", "exists already", remedy="name a new folder; nothing is overwritten")
    return target


def _parse(argument: str) -> tuple[Path, float]:
    path, equals, number = argument.rpartition("=")
    try:
        weight = float(number) if equals else float("nan")
    except ValueError:
        weight = float("nan")
    if not path or not 0 < weight < float("inf"):
        raise ConfigError(
            f"adapter {argument!r}", "has no usable weight", expected="DIR=NUM_EXAMPLES, a number above 0"
        )
    return Path(path), weight


def _common_config(folders: dict[Path, PeftFolder]) -> dict[str, Any]:
    """Take the first adapter's config, after checking that the others are for the same base and task."""
    first_path, first = next(iter(folders.items()))
    config = dict(first.config)
    for name in ("base_model_name_or_path", "task_type", "fan_in_fan_out", "bias"):
        for path, folder in folders.items():
            if folder.config.get(name) != config.get(name):
                raise BaseModelMismatchError(
                    f"adapter {path}",
                    f"{name} is not that of {first_path}",
                    got=json.dumps(folder.config.get(name)),
                    expected=json.dumps(config.get(name)),
                    remedy="aggregate adapters of one base model only",
                )
    for name in ("target_modules", "modules_to_save"):
        lists = [folder.config.get(name) for folder in folders.values()]
        if all(isinstance(value, list) for value in lists if value):
            config[name] = sorted({entry for value in lists if value for entry in value}) or None
    return config


def _report(target: Path, ranks: dict[str, int], what: str) -> dict[str, Any]:
    ladder = sorted(set(ranks.values()))
    described = f"rank {ladder[0]}" if len(ladder) == 1 else f"ranks {ladder[0]} to {ladder[-1]}"
    return {
        "out": str(target),
        "modules": len(ranks),
        "max_rank": ladder[-1],
        "text": f"{what}: {len(ranks)} modules, {described}, written to {target}",
    }
