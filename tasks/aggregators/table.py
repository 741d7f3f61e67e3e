"""The table of aggregators: forms, validation, the command line and the law suite all read it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.adapters.lora import LoraAdapter, check_finite, prefix
from tasks.aggregators.fedavg import fedavg
from tasks.aggregators.fold import Fold
from tasks.aggregators.rbla import rbla
from tasks.aggregators.zero_pad import zero_pad
from tasks.errors import EmptyCohortError, InvalidWeightError, NonFiniteUpdateError, UnknownNameError


@dataclass(frozen=True)
class Aggregator:
    """One method, and what it promises; the law suite holds it to every promise.

    Args:
        name: As configs write it.
        title: For people.
        paper: Link to the publication.
        start: Makes an empty fold.
        share: (global adapter, module path -> rank) -> what a client of these ranks receives.
        mixed_ranks: Clients may train different ranks.
        exact_product: The result's product is the weighted mean of the clients' products.
        gauge_invariant: Only products matter: `(b g^-1, g a)` gives the same result as `(b, a)`.
        needs: "sums" if weighted sums of what clients send suffice, "updates" if each update must be seen.
        noop_fixed_point: If all clients return the share they were given, the global adapter does not change.
        downlink: What goes to a client: "slice" is the first rank slots of the global adapter.
    """

    name: str
    title: str
    paper: str
    start: Callable[[], Fold]
    share: Callable[[LoraAdapter, Mapping[str, int]], LoraAdapter]
    mixed_ranks: bool
    exact_product: bool
    gauge_invariant: bool
    needs: Literal["sums", "updates"]
    noop_fixed_point: bool
    downlink: Literal["slice"]


AGGREGATORS: dict[str, Aggregator] = {
    "fedavg": Aggregator(
        name="fedavg",
        title="FedAvg of factors",
        paper="https://arxiv.org/abs/1602.05629",
        start=fedavg,
        share=prefix,
        mixed_ranks=False,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=True,
        downlink="slice",
    ),
    "rbla": Aggregator(
        name="rbla",
        title="RBLA: every slot over its owners",
        paper="https://arxiv.org/abs/2408.08699",
        start=rbla,
        share=prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=True,
        downlink="slice",
    ),
    "zero_pad": Aggregator(
        name="zero_pad",
        title="Zero-padding",
        paper="https://arxiv.org/abs/2401.06432",
        start=zero_pad,
        share=prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=False,
        downlink="slice",
    ),
}


def aggregator(name: str) -> Aggregator:
    """Look up an aggregator.

    Args:
        name: As configs write it.

    Raises:
        UnknownNameError: No aggregator has this name.
    """
    if name not in AGGREGATORS:
        raise UnknownNameError("aggregator", name, AGGREGATORS)
    return AGGREGATORS[name]


def aggregate(
    name: str,
    updates: Sequence[LoraAdapter],
    weights: Sequence[float],
    *,
    previous: LoraAdapter | None = None,
) -> LoraAdapter:
    """Weave updates that are all at hand into one adapter.

    Args:
        name: The method.
        updates: One per client, in sorted client order; any scaling; never written to.
        weights: One per client, > 0; only ratios matter.
        previous: The global adapter of the round before; what no client trained is kept from it.

    Returns:
        The new global adapter, scaling 1.

    Raises:
        UnknownNameError: No aggregator has this name.
        EmptyCohortError: No updates.
        InvalidWeightError: A weight is not a positive finite number, or their number or sum is wrong.
        AdapterShapeError: Layers or dense tensors of one name differ in shape between clients.
        MixedRanksError: The method needs equal ranks.
        NonFiniteUpdateError: An update holds NaN or infinity; names the update and the tensor.
    """
    fold = aggregator(name).start()
    _check_weights(weights, len(updates))
    for position, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        fold.add(position, update, weight)
    try:
        return fold.finish(previous)
    except NonFiniteUpdateError:
        # NaN and infinity survive every mean: looking at the result spares a pass over all inputs, and only a
        # refusal has to find out whose they were.
        for position, update in enumerate(updates):
            check_finite(update, f"update {position}")
        raise


def _check_weights(weights: Sequence[float], num_updates: int) -> None:
    if not num_updates:
        raise EmptyCohortError("aggregate", "there are no updates", remedy="wait for at least one client")
    if len(weights) != num_updates:
        raise InvalidWeightError("aggregate", "one weight per update is needed", got=len(weights), expected=num_updates)
    if all(map(math.isfinite, weights)) and math.isinf(sum(weights)):
        raise InvalidWeightError(
            "aggregate",
            "the weights add up to infinity",
            got=list(weights),
            remedy="scale all weights down; only their ratios matter",
        )
