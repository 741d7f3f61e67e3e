"""What a method lets people set: declared beside the method, shown by the form, checked by config validation.

An option belongs to the rows that name it. Two methods that mean the same by a word share the one option of that word.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from tasks.errors import ConfigError, UnknownNameError

Kind = Literal["number", "count", "switch"]


@dataclass(frozen=True)
class Option:
    """One number or switch of a method.

    Args:
        name: As configs write it, and the keyword that the method's `start` takes.
        description: What it does, in one sentence, with its unit.
        default: What holds unless it is set.
        least: Smallest value allowed.
        most: Largest value allowed.
        kind: A "number", a "count" (whole) or a "switch" (0 or 1).
    """

    name: str
    description: str
    default: float
    least: float = 0.0
    most: float = 1.0
    kind: Kind = "number"


def chosen(method: str, options: Iterable[Option], values: Mapping[str, float]) -> dict[str, float]:
    """Return the keywords for a method's `start`, refusing what it does not take.

    Args:
        method: The method, for messages.
        options: What it takes.
        values: Option name -> value; what is missing keeps its default.

    Returns:
        Option name -> value: a whole number for counts, a truth value for switches.

    Raises:
        UnknownNameError: The method has no such option.
        ConfigError: A value is out of bounds, or not whole where a count or switch is.
    """
    known = {option.name: option for option in options}
    if values and not known:
        raise ConfigError(method, "has no options", got=", ".join(values), remedy="leave them out")
    for name in values:
        if name not in known:
            raise UnknownNameError(f"option of {method}", name, known)
    return {name: _checked(method, option, values.get(name, option.default)) for name, option in known.items()}


def _checked(method: str, option: Option, value: float) -> float:
    if not option.least <= value <= option.most or (option.kind != "number" and value != int(value)):
        kind = {"number": "a number", "count": "a whole number", "switch": "a switch,"}[option.kind]
        raise ConfigError(
            f"option {option.name} of {method}",
            "has no usable value",
            got=value,
            expected=f"{kind} from {option.least:g} to {option.most:g}",
        )
    return {"number": float, "count": int, "switch": bool}[option.kind](value)


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
