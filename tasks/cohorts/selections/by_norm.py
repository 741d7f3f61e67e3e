"""Cohorts by the size of clients' last updates."""

from collections.abc import Mapping, Sequence

from tasks.cohorts.selections.knowledge import ClientKnowledge, Draw, wanted


def by_norm(
    clients: Sequence[str], knowledge: Mapping[str, ClientKnowledge], *, size: int, draw: Draw, floor: float
) -> tuple[str, ...]:
    r"""Invite clients in proportion to the norm of their last known update.

    Each place is drawn with $p_i = (1 - f) \|U_i\| / \sum_j \|U_j\| + f / n$ among the n clients whose norm is known,
    those left in turn. Clients whose norm is not known come first, drawn uniformly where they are more than the places.

    Args:
        clients: All client ids, each once, in any order.
        knowledge: Client id -> what it showed; clients that are not among `clients` do not count.
        size: Clients wanted, those to make up for no-shows included; 0 means all.
        draw: Whose draw it is.
        floor: f above [fraction].

    Returns:
        Client ids in sorted order.

    Invariants:
        The order of clients and the scale of the norms do not matter. Every known client is drawn for the first of the
        places with a chance of f / n or more. A floor of 1, or norms that are all alike, draws uniformly.

    References:
        After Wenlin Chen, Samuel Horváth, Peter Richtárik, "Optimal Client Sampling for Federated Learning", 2020,
        https://arxiv.org/abs/2010.13723; recalled, not read for this. We differ: there every client trains first,
        tells the weighted norm of this round's update, and is drawn independently of the others; here the last known
        norm stands in, the cohort has its size, and a floor keeps everyone in. The published rule divides updates by
        their chance, which makes the mean unbiased; weights are not corrected here, so that clients with large updates
        count more than their data.
    """
    everyone = sorted(clients)
    places = wanted(everyone, size)
    norms = {c: norm for c in everyone if c in knowledge and (norm := knowledge[c].update_norm) is not None}
    unknown = draw.race({c: 1.0 for c in everyone if c not in norms}, places, "explore")
    # Shares of the largest, so that no sum overflows.
    largest = max(norms.values(), default=0.0)
    shares = {c: norm / largest if largest else 1.0 for c, norm in norms.items()}
    total = sum(shares.values())
    chances = {c: (1 - floor) * share / total + floor / len(shares) for c, share in shares.items()}
    return tuple(sorted(unknown + draw.race(chances, places - len(unknown), "by_norm")))
