"""Adapters on disk, no servers and no config: weave several, or resize one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tasks.adapters.lora import check_finite
from tasks.adapters.peft_files import PeftFolder, read_adapter, write_adapter
from tasks.adapters.resize import resize
from tasks.aggregators.fold import Fold
from tasks.aggregators.robust.screen import Screen, ScreenedFold
from tasks.aggregators.robust.table import misfit, robust_rule
from tasks.aggregators.table import Aggregator, aggregator
from tasks.errors import BaseModelMismatchError, ConfigError


@dataclass(frozen=True)
class Recipe:
    """How adapters are woven offline.

    Args:
        method: Name of an aggregator.
        options: "NAME=VALUE" each, for the aggregator.
        robust: Name of a robust rule; empty for none.
        robust_options: "NAME=VALUE" each, for the rule.
        rank: Rank of the result; None for the one the method gives.
    """

    method: str
    options: Sequence[str] = ()
    robust: str = ""
    robust_options: Sequence[str] = ()
    rank: int | None = None

    def fold(self) -> Fold:
        """Start the aggregation; what cannot be honoured is refused here, before any folder is read.

        Raises:
            UnknownNameError: No such aggregator, rule or option.
            ConfigError: An option is malformed, given twice or out of bounds, or the parts do not go together.
        """
        row, values = aggregator(self.method), _values(self.options)
        plain = row.fold(values)
        if row.sends == "a" and self.rank is not None:
            raise ConfigError(
                f"--rank {self.rank}",
                f"{row.name} gives a factor without a product, and a cut keeps the largest parts of a product",
                remedy="leave --rank out",
            )
        screen = self._screen(row)
        return plain if screen is None else ScreenedFold(partial(row.fold, values), screen)

    def _screen(self, row: Aggregator) -> Screen | None:
        if not self.robust:
            if self.robust_options:
                raise ConfigError("--robust-option", "there is no robust rule to take it", remedy="name one: --robust")
            return None
        rule = robust_rule(self.robust)
        if reason := misfit(rule, row):
            raise ConfigError(f"--robust {rule.name}", reason)
        return rule.start(_values(self.robust_options))


def aggregate_folders(recipe: Recipe, arguments: Sequence[str], *, out: str) -> dict[str, Any]:
    """Weave PEFT adapter folders into one.

    Args:
        recipe: How.
        arguments: "DIR=NUM_EXAMPLES" each.
        out: New folder.

    Returns:
        What was written, and "text" to print.

    Raises:
        UnknownNameError: No such aggregator, rule or option.
        ConfigError: An argument is not of that form, the recipe cannot be honoured, or the folder exists.
        AdapterFormatError: A folder is not a PEFT LoRA adapter.
        BaseModelMismatchError: Folders name different base models or tasks.
        MixedRanksError: The method needs equal ranks.
        FrozenFactorError: The method needs one factor a for all, and the folders' differ.
    """
    fold = recipe.fold()
    target = _new_folder(out)
    named = dict(_parse(argument) for argument in arguments)
    if len(named) != len(arguments):
        raise ConfigError("adapters", "the same folder is given twice")
    folders = {path: read_adapter(path) for path in sorted(named)}
    config = _common_config(folders)
    for position, (path, folder) in enumerate(folders.items()):
        check_finite(folder.adapter, f"adapter {path}")
        fold.add(position, folder.adapter, named[path])
    woven = fold.finish(None)
    if recipe.rank is not None:
        woven = resize(woven, recipe.rank)
    write_adapter(target, woven, config)
    report = _report(target, woven.ranks, f"{recipe.method} of {len(folders)} adapters")
    paths = [str(path) for path in folders]
    notes = {paths[place]: note for place, note in fold.notes.items()} if isinstance(fold, ScreenedFold) else {}
    lines = [report["text"], *(f"  {path}: {note}" for path, note in notes.items())]
    if aggregator(recipe.method).sends == "a":
        lines.append("  factor b stays with each adapter: the result holds the shared factor a, and zeros for b")
    return {**report, "notes": notes, "text": "\n".join(lines)}


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


def _values(arguments: Sequence[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for argument in arguments:
        name, _, number = argument.partition("=")
        if name in values:
            raise ConfigError(f"option {argument!r}", f"{name} is given twice", remedy="give every option once")
        try:
            values[name] = float(number)
        except ValueError:
            raise ConfigError(f"option {argument!r}", "has no number", expected="NAME=VALUE, e.g. energy=0.9") from None
    return values


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
