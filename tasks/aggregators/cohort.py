"""A whole cohort at once, for callers that hold all updates; who receives them one by one starts a fold."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tasks.adapters.lora import LoraAdapter, check_finite
from tasks.aggregators.table import aggregator
from tasks.errors import EmptyCohortError, InvalidWeightError, NonFiniteUpdateError


def aggregate(
    name: str,
    updates: Sequence[LoraAdapter],
    weights: Sequence[float],
    *,
    previous: LoraAdapter | None = None,
    options: Mapping[str, float] = MappingProxyType({}),
) -> LoraAdapter:
    """Weave updates that are all at hand into one adapter.

    Args:
        name: The method.
        updates: One per client, in sorted client order; any scaling; never written to.
        weights: One per client, > 0; only ratios matter.
        previous: The global adapter of the round before; what no client trained is kept from it.
        options: Option name -> value, as the method's row lists them.

    Returns:
        The new global adapter, scaling 1.

    Raises:
        UnknownNameError: No aggregator has this name, or it has no such option.
        ConfigError: An option's value is of the wrong type or out of bounds.
        EmptyCohortError: No updates.
        InvalidWeightError: A weight is not a positive finite number, or their number or sum is wrong.
        AdapterShapeError: Layers or dense tensors of one name differ in shape between clients.
        MixedRanksError: The method needs equal ranks.
        NonFiniteUpdateError: An update holds NaN or infinity; names the update and the tensor.
    """
    fold = aggregator(name).fold(options)
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
