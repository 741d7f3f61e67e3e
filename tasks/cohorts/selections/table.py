"""The table of selections: forms, validation and the law suite all read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tasks.cohorts.sampling import sample_cohort
from tasks.cohorts.selections.by_loss import CANDIDATES, by_loss
from tasks.cohorts.selections.by_norm import by_norm
from tasks.cohorts.selections.knowledge import FLOOR, ClientKnowledge, Draw
from tasks.errors import UnknownNameError
from tasks.options import Option, Value, chosen


def uniform(
    clients: Sequence[str], knowledge: Mapping[str, ClientKnowledge], *, size: int, draw: Draw
) -> tuple[str, ...]:
    """Invite clients uniformly, whatever is known of them.

    Args:
        clients: All client ids, each once, in any order.
        knowledge: Not looked at.
        size: Clients wanted; 0 means all.
        draw: Whose draw it is.

    Returns:
        Client ids in sorted order, the same as `sample_cohort` draws.
    """
    del knowledge
    return sample_cohort(clients, cohort_size=size, overshoot=0, round_index=draw.round_index, seed=draw.seed)


@dataclass(frozen=True)
class Selection:
    """One way to choose a cohort.

    Args:
        name: As configs write it.
        title: For people.
        paper: Link to the publication; empty where there is none.
        choose: (clients, knowledge, size, draw, **options) -> the cohort.
        follows_clients: Who is invited depends on what single clients did. That biases the mean towards those chosen
            more often, tells about their data, and voids what sampling at random does for privacy.
        options: What people may set; keywords of `choose`.
    """

    name: str
    title: str
    paper: str
    choose: Callable[..., tuple[str, ...]]
    follows_clients: bool = True
    options: tuple[Option, ...] = ()

    def cohort(
        self,
        clients: Sequence[str],
        knowledge: Mapping[str, ClientKnowledge],
        *,
        size: int,
        draw: Draw,
        values: Mapping[str, Value] = MappingProxyType({}),
    ) -> tuple[str, ...]:
        """Choose a round's cohort.

        Args:
            clients: All client ids, each once, in any order.
            knowledge: Client id -> what it showed in earlier rounds; clients never heard of are missing.
            size: Clients wanted, those to make up for no-shows included; 0 means all.
            draw: Whose draw it is.
            values: Option name -> value; what is missing keeps its default.

        Returns:
            Client ids in sorted order, each once; `size` of them, or all if there are fewer.

        Raises:
            UnknownNameError: The selection has no such option.
            ConfigError: A value is of the wrong type or out of bounds.
        """
        return self.choose(clients, knowledge, size=size, draw=draw, **chosen(self.name, self.options, values))


SELECTIONS: dict[str, Selection] = {
    "uniform": Selection(name="uniform", title="Uniformly at random", paper="", choose=uniform, follows_clients=False),
    "by_norm": Selection(
        name="by_norm",
        title="By the norm of the last update, after optimal client sampling",
        paper="https://arxiv.org/abs/2010.13723",
        choose=by_norm,
        options=(FLOOR,),
    ),
    "by_loss": Selection(
        name="by_loss",
        title="Power of choice: the highest loss among candidates",
        paper="https://arxiv.org/abs/2010.01243",
        choose=by_loss,
        options=(CANDIDATES, FLOOR),
    ),
}


def selection(name: str) -> Selection:
    """Look up a selection.

    Args:
        name: As configs write it.

    Raises:
        UnknownNameError: No selection has this name.
    """
    if name not in SELECTIONS:
        raise UnknownNameError("selection", name, SELECTIONS)
    return SELECTIONS[name]
