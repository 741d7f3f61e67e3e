"""Options of methods in a form: a name that some method of the family knows, and a value."""

from collections.abc import Iterable
from typing import Annotated, Protocol, TypeVar

from pydantic import Field

from configs.forms import FormModel, NameIn
from tasks.aggregators.robust.table import ROBUST_RULES
from tasks.aggregators.surrogates import SURROGATES
from tasks.aggregators.table import AGGREGATORS
from tasks.codecs.table import CODECS
from tasks.cohorts.selections.table import SELECTIONS
from tasks.lazy.table import LAZY_RULES
from tasks.local_methods.table import LOCAL_METHODS
from tasks.options import Value, describe_options, known_options
from tasks.rank_schedulers.table import RANK_SCHEDULERS

V_co = TypeVar("V_co", bound=Value, covariant=True)
_AGGREGATION = known_options([*AGGREGATORS.values(), *ROBUST_RULES.values()])
_RANKS = known_options(RANK_SCHEDULERS.values())
_TRAINING = known_options(LOCAL_METHODS.values())
_CODECS = known_options(CODECS.values())
_LAZY = known_options(LAZY_RULES.values())
_SURROGATES = known_options([SURROGATES])
_SELECTIONS = known_options(SELECTIONS.values())
_EACH = "Which one; each belongs to some methods only: "

Number = Annotated[float, Field(ge=0.0, le=1e9)]
# One text for numbers and names: a form shows a field of two types as two tabs.
Text = Annotated[str, Field(coerce_numbers_to_str=True, max_length=100)]


class MethodOption(FormModel):
    """One option of a method, set to something else than its default."""

    name: Annotated[str, NameIn("option", _AGGREGATION)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_AGGREGATION)}."
    )
    value: Number = Field(title="Value", description="A number within the option's own bounds; 1 or 0 for on and off.")


class RankOption(FormModel):
    """One option of a rank scheduler, set to something else than its default."""

    name: Annotated[str, NameIn("option", _RANKS)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_RANKS)}."
    )
    value: Text = Field(
        title="Value", description="A number within the option's own bounds, or a name; 1 or 0 for on and off."
    )


class CodecOption(FormModel):
    """One option of a codec, set to something else than its default."""

    name: Annotated[str, NameIn("option", _CODECS)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_CODECS)}."
    )
    value: Text = Field(
        title="Value", description="A number within the option's own bounds, or a name; 1 or 0 for on and off."
    )


class SurrogateOption(FormModel):
    """One option of surrogates, set to something else than its default."""

    name: Annotated[str, NameIn("option", _SURROGATES)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_SURROGATES)}."
    )
    value: Number = Field(title="Value", description="A number within the option's own bounds.")


class SelectionOption(FormModel):
    """One option of a selection, set to something else than its default."""

    name: Annotated[str, NameIn("option", _SELECTIONS)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_SELECTIONS)}."
    )
    value: Number = Field(title="Value", description="A number within the option's own bounds.")


class LazyOption(FormModel):
    """One option of a lazy rule, set to something else than its default."""

    name: Annotated[str, NameIn("option", _LAZY)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_LAZY)}."
    )
    value: Number = Field(title="Value", description="A number within the option's own bounds.")


class TrainingOption(FormModel):
    """One option of a local method, set to something else than its default."""

    name: Annotated[str, NameIn("option", _TRAINING)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_TRAINING)}."
    )
    value: Text = Field(
        title="Value", description="A number within the option's own bounds, or a name; 1 or 0 for on and off."
    )


class GivenOption(Protocol[V_co]):
    """One option as a form holds it."""

    @property
    def name(self) -> str:
        """Which option."""
        ...

    @property
    def value(self) -> V_co:
        """What it is set to."""
        ...


def values_of(options: Iterable[GivenOption[V_co]]) -> dict[str, V_co]:
    """Return what a form's options are set to, by their names."""
    return {option.name: option.value for option in options}
