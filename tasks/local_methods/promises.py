"""What a row of the table of local methods says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.options import Option, Value, chosen


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
