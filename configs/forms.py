"""What makes a pydantic model a good Prefect form: field order, drop-downs from tables, errors that name the field."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tasks.errors import ConfigError, UnknownNameError


class FormModel(BaseModel):
    """A section of the form: frozen, no unknown fields, fields shown in the order they are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Give every field its position: PostgreSQL's JSONB forgets the order of keys."""
        json_schema = handler(schema)
        resolved = handler.resolve_ref_schema(json_schema)
        for position, field in enumerate(resolved.get("properties", {}).values()):
            field["position"] = position
        return json_schema


class NameIn:
    """Annotation of a string that must be a name of a table: a drop-down in the form, a list of names on a typo.

    Args:
        kind: What the table holds, for the message.
        table: Name -> anything; the one place that lists the names.
    """

    def __init__(self, kind: str, table: Mapping[str, object]) -> None:
        self.kind, self.table = kind, table

    def check(self, name: str) -> str:
        """Return the name if the table has it."""
        if name not in self.table:
            raise ValueError(str(UnknownNameError(self.kind, name, self.table)))
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "enum": list(self.table)}


def as_config_error(error: ValidationError, subject: str, model: type[BaseModel]) -> ConfigError:
    """Turn pydantic's report into one error that names every field and what to do.

    Args:
        error: Pydantic's report.
        subject: What was being read: a file, a deployment.
        model: The model it was read into, for suggestions.
    """
    problems = [_problem(detail["loc"], detail["msg"], detail["type"], model) for detail in error.errors()]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(subject, count + "".join(f"\n  - {problem}" for problem in problems))


def _problem(loc: tuple[int | str, ...], message: str, kind: str, model: type[BaseModel]) -> str:
    path = ".".join(map(str, loc))
    message = message.removeprefix("Value error, ")
    if kind != "extra_forbidden":
        return f"{path}: {message}" if path else message  # rules across sections name their field themselves
    known = _field_names(model, loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "expected one of " + ", ".join(known)
    return f"{path}: there is no such field; {hint}"


def _field_names(model: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    for part in loc:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
