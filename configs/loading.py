"""From a file and overrides to a config: presets by name, YAML by path, `--set a.b=c` on top."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.experiment import ExperimentConfig
from configs.forms import as_config_error
from tasks.errors import ConfigError

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """List the experiments that ship with Rankweave."""
    return [name for name in _shipped() if not is_plan(load_document(name))]


def plan_names() -> list[str]:
    """List the comparison plans that ship with Rankweave."""
    return [name for name in _shipped() if is_plan(load_document(name))]


def is_plan(document: Mapping[str, Any]) -> bool:
    """Tell a comparison plan from an experiment: it lists methods."""
    return "methods" in document


def load_config(source: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a config and apply overrides.

    Args:
        source: Path of a YAML file, or the name of a preset.
        overrides: "a.b=value" each; values are read as YAML.

    Raises:
        ConfigError: No such file, not YAML, or fields that do not hold; names each field and the remedy.
    """
    document = load_document(source)
    if is_plan(document):
        raise ConfigError(
            f"config {source}",
            "is a comparison plan, not an experiment",
            remedy=f"run it with `rankweave compare {source} --out DIR`",
        )
    return parse_config(with_overrides(document, overrides), f"config {source}")


def load_document(source: str) -> dict[str, Any]:
    """Read a file or preset without checking what is in it.

    Args:
        source: Path of a YAML file, or the name of a preset.

    Raises:
        ConfigError: No such file, or not a mapping in YAML.
    """
    return _read(_locate(source))


def with_overrides(document: Mapping[str, Any], overrides: Sequence[str], origin: str = "--set") -> dict[str, Any]:
    """Return a copy of a document with fields changed.

    Args:
        document: Sections; not written to.
        overrides: "a.b=value" each; values are read as YAML, later ones win.
        origin: Where the overrides stand, for messages.

    Raises:
        ConfigError: An override is malformed.
    """
    changed = copy.deepcopy(dict(document))
    for override in overrides:
        _apply(changed, override, f"{origin} {override}")
    return changed


def parse_config(document: dict[str, Any], subject: str) -> ExperimentConfig:
    """Check a document against the form.

    Raises:
        ConfigError: Names each field that does not hold and the remedy.
    """
    try:
        return ExperimentConfig.model_validate(document)
    except ValidationError as error:
        raise as_config_error(error, subject, ExperimentConfig) from None


def _shipped() -> list[str]:
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def _locate(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    preset = PRESETS / f"{source}.yaml"
    if preset.is_file():
        return preset
    raise ConfigError(
        f"config {source}",
        "no such file or preset",
        expected=f"a YAML file, or a preset: {', '.join(_shipped())}",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {path}", f"cannot be read as YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"config {path}", "is not a mapping of sections", got=type(document).__name__)
    return document


def _apply(document: dict[str, Any], override: str, subject: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(subject, "is not an override", expected="section.field=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(subject, f"value is not YAML: {error}") from error
    here = document
    for key in keys[:-1]:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise ConfigError(subject, f"{key} is not a section")
    here[keys[-1]] = value
