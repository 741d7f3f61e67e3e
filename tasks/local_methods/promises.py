"""What a row of the table of local methods says."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.options import Option, Value, chosen

Trained = Literal["both", "a", "b"]
"""The factors of every pair that a round trains; the untouched one stays what the server sent."""


def turn(rounds_done: int) -> Literal["a", "b"]:
    """Say which factor learns in a round of those that alternate.

    Round 1 trains `b`: it starts at zero, and while it is zero `a` has no gradient, so a round of `a` would be lost.

    Args:
        rounds_done: The rounds before it that made a new global adapter; a failed one is not counted.
    """
    return "a" if rounds_done % 2 else "b"


@dataclass(frozen=True)
class LocalMethodRow:
    """One thing that a client's training adds to plain LoRA; several add up.

    Args:
        name: As configs write it.
        title: For people.
        paper: Link to the publication.
        start: Makes the hooks: (occasion, **options).
        trains: The factors that a round trains; "alternate" is b in odd rounds and a in even ones.
        prunes: Clients may come back with fewer slots than they were sent.
        keeps_personal: Clients train a second adapter that never leaves them.
        penalises: It may add something to the task's loss.
        leaves_out: It trains without some slots, which another method may count all the same.
        needs_factors: It works on `a` and `b` as parameters of their own.
        guards_examples: It hides single examples by noise, which anything added to the loss would get around.
        options: What people may set; keywords of `start`.
    """

    name: str
    title: str
    paper: str
    start: Callable[..., LocalMethod]
    trains: Literal["both", "a", "b", "alternate"] = "both"
    prunes: bool = False
    keeps_personal: bool = False
    penalises: bool = False
    leaves_out: bool = False
    needs_factors: bool = False
    guards_examples: bool = False
    options: tuple[Option, ...] = ()

    def method(self, occasion: Occasion, values: Mapping[str, Value] = MappingProxyType({})) -> LocalMethod:
        """Make the hooks, fresh for one training.

        Args:
            occasion: Whose training.
            values: Option name -> value; what is missing keeps its default.

        Raises:
            UnknownNameError: There is no such option.
            ConfigError: A value is of the wrong type or out of bounds.
        """
        return self.start(occasion, **chosen(self.name, self.options, values))

    def trains_in(self, rounds_done: int) -> Trained:
        """Say which factors of every pair a round trains, and so which ones an update need hold.

        Args:
            rounds_done: The rounds before it that made a new global adapter.
        """
        if self.trains == "alternate":
            return turn(rounds_done)
        return self.trains


def trained_in(rows: Iterable[LocalMethodRow], rounds_done: int) -> Trained:
    """Say which factors are trained where several methods work together.

    Args:
        rows: The methods; at most one of them freezes a factor.
        rounds_done: The rounds before this one that made a new global adapter.
    """
    for row in rows:
        if (part := row.trains_in(rounds_done)) != "both":
            return part
    return "both"
