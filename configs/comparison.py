"""A comparison plan: methods by settings by seeds, every cell of that grid one experiment.

What lives here: the form of a plan and how a cell becomes a config. What does not: running cells, figures over seeds.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from configs.experiment import ExperimentConfig
from configs.forms import FormModel, as_config_error
from configs.loading import is_plan, load_document, parse_config, plan_names, with_overrides
from tasks.errors import ConfigError

NAME = r"^[a-z0-9]+([._-][a-z0-9]+)*$"
"""Names of methods and settings: parts of file names, in which two dashes separate them."""

_PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
_OWN_FIELDS = {"name", "seed", "resume_run", "publishing.model_name"}


@dataclass(frozen=True)
class Cell:
    """One experiment of a comparison.

    Args:
        setting: Name of the setting.
        method: Name of the method.
        seed: Its seed.
    """

    setting: str
    method: str
    seed: int

    @property
    def id(self) -> str:
        """What it is called in messages and filters."""
        return f"{self.setting}/{self.method}/seed{self.seed}"

    @property
    def slug(self) -> str:
        """What it is called in names of files and models."""
        return f"{self.setting}--{self.method}--seed{self.seed}"


def _check_overrides(overrides: list[str]) -> list[str]:
    for override in overrides:
        field, equals, _ = override.partition("=")
        if not equals or not all(field.split(".")):
            raise ValueError(f"{override!r} is not an override; write section.field=value")
        if field in _OWN_FIELDS:
            raise ValueError(f"{field} is set by the plan for every cell; leave it out")
    return overrides


class MethodConfig(FormModel):
    """What is compared."""

    name: str = Field(pattern=NAME, max_length=40, title="Name", description="What the method is called in results.")
    set: list[str] = Field(
        default=[], title="Overrides", description="Fields of the experiment, section.field=value each; these win."
    )

    _overrides_fit = field_validator("set")(_check_overrides)


class SettingConfig(FormModel):
    """What it is compared on."""

    name: str = Field(pattern=NAME, max_length=60, title="Name", description="What the setting is called in results.")
    set: list[str] = Field(
        default=[],
        title="Overrides",
        description="Fields of the experiment, section.field=value each; a method's own win over these.",
    )
    target: float = Field(
        default=0.0,
        ge=0.0,
        le=1e9,
        title="Target",
        description="Value of the metric for rounds to target; 0 for none.",
    )
    needs_env: str = Field(
        default="",
        pattern=r"^([A-Z][A-Z0-9_]*)?$",
        title="Needs the variable",
        description="Variable that a location holds as ${NAME}; without it in the environment the setting is left out.",
    )

    _overrides_fit = field_validator("set")(_check_overrides)


class ComparisonConfig(FormModel):
    """Methods by settings by seeds."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,59}$",
        title="Name",
        description="Name of the comparison and of its runs: a-z, 0-9 and dashes.",
    )
    base: str = Field(title="Base", description="Preset or file that every experiment starts from.")
    set: list[str] = Field(
        default=[], title="Overrides", description="Fields that all experiments share, section.field=value each."
    )
    methods: list[MethodConfig] = Field(min_length=1, title="Methods", description="What is compared.")
    settings: list[SettingConfig] = Field(min_length=1, title="Settings", description="What it is compared on.")
    seeds: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(
        default=[0, 1, 2], min_length=1, title="Seeds", description="Every cell is run once with each."
    )

    _overrides_fit = field_validator("set")(_check_overrides)

    @model_validator(mode="after")
    def _nothing_twice(self) -> "ComparisonConfig":
        named = {"methods": [m.name for m in self.methods], "settings": [s.name for s in self.settings]}
        for field, values in {**named, "seeds": self.seeds}.items():
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise ValueError(f"{field}: {', '.join(twice)} stands there twice")
        return self

    def cells(self, only: str = "") -> list[Cell]:
        """List the cells, setting by setting.

        Args:
            only: Text that a cell's id must hold; empty for all.

        Raises:
            ConfigError: No cell's id holds it.
        """
        every = [Cell(s.name, m.name, seed) for s in self.settings for m in self.methods for seed in self.seeds]
        chosen = [cell for cell in every if only in cell.id]
        if not chosen:
            raise ConfigError(
                f"--only {only}", "fits no cell", expected=f"part of a setting/method/seed such as {every[0].id}"
            )
        return chosen

    def document(self, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Return what all experiments share: the base, the plan's own overrides, then these.

        Args:
            overrides: "a.b=value" each.

        Raises:
            ConfigError: The base is no experiment, or an override is malformed.
        """
        document = load_document(self.base)
        if is_plan(document):
            raise ConfigError(f"base {self.base}", "is a comparison plan itself", expected="an experiment")
        return with_overrides(with_overrides(document, self.set, f"plan {self.name}, set"), overrides)

    def experiment(self, cell: Cell, base: Mapping[str, Any]) -> ExperimentConfig:
        """Return the config of a cell: what all share, then the setting, then the method, then its own seed and names.

        Args:
            cell: One of `cells`.
            base: What `document` returned; not written to.

        Returns:
            The config, with `${NAME}` in locations as written: equal on machines that keep their data elsewhere.

        Raises:
            ConfigError: The combination does not hold; names the cell and the fields.
        """
        subject, setting = f"cell {cell.id}", self.setting(cell.setting)
        method = next(m for m in self.methods if m.name == cell.method)
        own = {"name": self.name, "seed": cell.seed, "publishing.model_name": f"{self.name}-{cell.slug}"}
        of_plan = [f"{field}={json.dumps(value)}" for field, value in own.items()]
        config = parse_config(with_overrides(base, [*setting.set, *method.set, *of_plan], f"{subject}, set"), subject)
        expand_locations(config, {setting.needs_env: ""}, subject)
        return config

    def setting(self, name: str) -> SettingConfig:
        """Return a setting by its name."""
        return next(s for s in self.settings if s.name == name)


def load_plan(source: str) -> ComparisonConfig:
    """Read a comparison plan.

    Args:
        source: Path of a YAML file, or the name of a plan that ships with Rankweave.

    Raises:
        ConfigError: No such file, not a plan, or fields that do not hold; names each field and the remedy.
    """
    document = load_document(source)
    if not is_plan(document):
        raise ConfigError(
            f"plan {source}",
            "lists no methods, so it is not a comparison plan",
            expected=f"a plan such as {', '.join(plan_names())}, or an experiment with --vary a.b=c,d",
        )
    try:
        return ComparisonConfig.model_validate(document)
    except ValidationError as error:
        raise as_config_error(error, f"plan {source}", ComparisonConfig) from None


def expand_locations(config: ExperimentConfig, variables: Mapping[str, str], subject: str) -> ExperimentConfig:
    """Return a config with `${NAME}` in the locations of data and model replaced.

    Args:
        config: The experiment; not changed.
        variables: Name -> value; no other name may occur.
        subject: Whose locations they are, for messages.

    Raises:
        ConfigError: A location holds a name that is not among the variables.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in variables:
            raise ConfigError(
                subject,
                f"a location holds {found[0]}, which its setting does not name",
                remedy=f"write needs_env: {found[1]} into the setting",
            )
        return variables[found[1]]

    data = config.data.model_copy(update={"location": _PLACEHOLDER.sub(value, config.data.location)})
    model = config.model.model_copy(update={"location": _PLACEHOLDER.sub(value, config.model.location)})
    return config.model_copy(update={"data": data, "model": model})


def common_metrics(experiments: Mapping[Cell, ExperimentConfig]) -> dict[str, str]:
    """Return the metric of every setting.

    Args:
        experiments: Cell -> its config.

    Raises:
        ConfigError: Cells of one setting are judged by different metrics.
    """
    metrics: dict[str, str] = {}
    for cell, config in experiments.items():
        if metrics.setdefault(cell.setting, config.metric) != config.metric:
            raise ConfigError(
                f"cell {cell.id}",
                "is judged by another metric than the rest of its setting",
                got=config.metric,
                expected=metrics[cell.setting],
            )
    return metrics
