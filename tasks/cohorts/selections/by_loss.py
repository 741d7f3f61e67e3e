"""Cohorts of the clients that are worst off: power of choice."""

import math
from collections.abc import Mapping, Sequence

from tasks.cohorts.selections.knowledge import ClientKnowledge, Draw, wanted
from tasks.options import Option

CANDIDATES = Option(
    name="candidates",
    description="clients drawn by the size of their data for each place that goes to the highest loss [clients]",
    default=2.0,
    least=1.0,
    most=1000.0,
)


def by_loss(
    clients: Sequence[str],
    knowledge: Mapping[str, ClientKnowledge],
    *,
    size: int,
    draw: Draw,
    candidates: float,
    floor: float,
) -> tuple[str, ...]:
    """Invite, of some candidates drawn by the size of their data, those with the highest last known loss.

    Clients whose loss is not known come first, drawn uniformly where they are more than the places. Of the places left
    each is an open one with the chance `floor`, drawn uniformly; for the m others ceil(candidates * m) candidates are
    drawn without replacement among those who have no place yet.

    Args:
        clients: All client ids, each once, in any order.
        knowledge: Client id -> what it showed; clients that are not among `clients` do not count.
        size: Clients wanted, those to make up for no-shows included; 0 means all.
        draw: Whose draw it is.
        candidates: Candidates for each place; 1 draws by the size of the data alone.
        floor: Chance that a place is an open one [fraction].

    Returns:
        Client ids in sorted order. Of equal losses the one not heard of for longer wins, then the lower id.

    Invariants:
        The order of clients does not matter, of losses nothing but their order, of the sizes of data nothing but their
        ratios. Every known client gets the first of the places with a chance of floor / n or more.

    References:
        Yae Jee Cho, Jianyu Wang, Gauri Joshi, "Client Selection in Federated Learning: Convergence Analysis and
        Power-of-Choice Selection Strategies", 2020, https://arxiv.org/abs/2010.01243; recalled, not read for this. We
        differ: losses are those of a client's last training (their variant that saves computation), where the main
        method asks all candidates for the current model's; open places are ours. The choice is biased on purpose:
        clients with high loss count more than their data, and weights are not corrected.
    """
    everyone = sorted(clients)
    places = wanted(everyone, size)
    losses = {c: loss for c in everyone if c in knowledge and (loss := knowledge[c].loss) is not None}
    chosen = draw.race({c: 1.0 for c in everyone if c not in losses}, places, "explore")
    num_open = sum(draw.u("open", place) < floor for place in range(places - len(chosen)))
    chosen += draw.race(dict.fromkeys(losses, 1.0), num_open, "open")
    left = places - len(chosen)
    sizes = {c: float(knowledge[c].num_examples) for c in losses if c not in chosen}
    drawn = draw.race(sizes, math.ceil(candidates * left), "by_loss")
    worst = sorted(drawn, key=lambda c: (-losses[c], knowledge[c].last_round, c))
    return tuple(sorted(chosen + worst[:left]))
