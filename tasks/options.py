"""What a method lets people set: declared beside the method, shown by the form, checked by config validation.

An option belongs to the rows that name it. Two methods that mean the same by a word share the one option of that word.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from tasks.errors import ConfigError, UnknownNameError

Kind = Literal["number", "count", "switch", "choice"]
Value = float | str


@dataclass(frozen=True)
class Option:
    """One number, switch or choice of a method.

    Args:
        name: As configs write it, and the keyword that the method's `start` takes.
        description: What it does, in one sentence, with its unit.
        default: What holds unless it is set.
        least: Smallest value allowed.
        most: Largest value allowed.
        kind: A "number", a "count" (whole), a "switch" (0 or 1) or a "choice" among names.
        choices: The names, for a choice.
    """

    name: str
    description: str
    default: Value
    least: float = 0.0
    most: float = 1.0
    kind: Kind = "number"
    choices: tuple[str, ...] = ()


def chosen(method: str, options: Iterable[Option], values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the keywords for a method's `start`, refusing what it does not take.

    Args:
        method: The method, for messages.
        options: What it takes.
        values: Option name -> value; what is missing keeps its default.

    Returns:
        Option name -> value: a whole number for counts, a truth value for switches, a name for choices.

    Raises:
        UnknownNameError: The method has no such option, or the option no such choice.
        ConfigError: A value is out of bounds, or not whole where a count or switch is.
    """
    known = {option.name: option for option in options}
    if values and not known:
        raise ConfigError(method, "has no options", got=", ".join(values), remedy="leave them out")
    for name in values:
        if name not in known:
            raise UnknownNameError(f"option of {method}", name, known)
    return {name: _checked(method, option, values.get(name, option.default)) for name, option in known.items()}


def allotted(rows: Iterable["HasOptions"], values: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Give each of several methods the options that it takes; one that two of them take goes to both.

    Args:
        rows: The methods that are used together.
        values: Option name -> value.

    Returns:
        Method name -> its own options' values.

    Raises:
        UnknownNameError: An option is taken by none of them.
        ConfigError: None of them has any options.
    """
    taken = {row.name: {option.name for option in row.options} for row in rows}
    known, who = set().union(*taken.values()), ", ".join(taken)
    if values and not known:
        raise ConfigError(who or "no method", "has no options", got=", ".join(values), remedy="leave them out")
    for name in values:
        if name not in known:
            raise UnknownNameError(f"option of {who}", name, known)
    return {row: {name: value for name, value in values.items() if name in mine} for row, mine in taken.items()}


def _checked(method: str, option: Option, value: Value) -> Value:
    if option.kind == "choice":
        if value not in option.choices:
            raise UnknownNameError(f"{option.name} of {method}", str(value), option.choices)
        return value
    number = _as_number(value)
    if not _is_within(option, number):
        kind = {"number": "a number", "count": "a whole number", "switch": "a switch,"}[option.kind]
        raise ConfigError(
            f"option {option.name} of {method}",
            "has no usable value",
            got=value,
            expected=f"{kind} from {option.least:g} to {option.most:g}",
        )
    return {"number": float, "count": int, "switch": bool}[option.kind](number)


def _as_number(value: Value) -> float:
    """Read a number that a form may hold as text; what is none is no value of any option."""
    try:
        return float(value)
    except ValueError:
        return math.nan


def _is_within(option: Option, value: float) -> bool:
    return option.least <= value <= option.most and (option.kind == "number" or value == int(value))


class HasOptions(Protocol):
    """A row of a table whose method has options."""

    @property
    def name(self) -> str:
        """As configs write it."""
        ...

    @property
    def options(self) -> tuple[Option, ...]:
        """What people may set."""
        ...


def known_options(rows: Iterable[HasOptions]) -> dict[str, str]:
    """Return every option of some rows: its name, and what it means to whom.

    Args:
        rows: Rows of any tables.

    Returns:
        Option name -> description, ending in the methods that take it.
    """
    meanings: dict[str, str] = {}
    takers: dict[str, list[str]] = {}
    for row in rows:
        for option in row.options:
            meanings.setdefault(option.name, option.description)
            takers.setdefault(option.name, []).append(row.name)
    return {name: f"{meaning} ({', '.join(takers[name])})" for name, meaning in sorted(meanings.items())}


def describe_options(known: Mapping[str, str]) -> str:
    """Return what `known_options` found as one line for a form."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in known.items())
