"""Options of methods in a form: a name that some method of the family knows, and a value."""

from typing import Annotated

from pydantic import Field

from configs.forms import FormModel, NameIn
from tasks.aggregators.robust.table import ROBUST_RULES
from tasks.aggregators.table import AGGREGATORS
from tasks.local_methods.table import LOCAL_METHODS
from tasks.options import describe_options, known_options
from tasks.rank_schedulers.table import RANK_SCHEDULERS

_AGGREGATION = known_options([*AGGREGATORS.values(), *ROBUST_RULES.values()])
_RANKS = known_options(RANK_SCHEDULERS.values())
_TRAINING = known_options(LOCAL_METHODS.values())
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


class TrainingOption(FormModel):
    """One option of a local method, set to something else than its default."""

    name: Annotated[str, NameIn("option", _TRAINING)] = Field(
        title="Option", description=f"{_EACH}{describe_options(_TRAINING)}."
    )
    value: Text = Field(
        title="Value", description="A number within the option's own bounds, or a name; 1 or 0 for on and off."
    )
