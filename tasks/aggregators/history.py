"""What earlier rounds left behind, for methods whose clients add every round's result to their base.

Their global adapter keeps its slots in three parts: [what clients train on | what earlier rounds added to the base |
what this round added]. Everything after the first part is history, and the last part is what goes on the downlink.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.products import truncate


def num_past(previous: LoraPair | None, skip: int) -> int:
    """Return how many slots `past` gives, without computing them.

    Args:
        previous: The global pair of the round before, scaling folded; a [R, I], b [O, R].
        skip: Slots at the front that are no history.

    Returns:
        0 if there are none, or one of their factors is all zeros; at most min(O, I).
    """
    if previous is None or previous.rank <= skip:
        return 0
    if not (bool(previous.a[skip:].any()) and bool(previous.b[:, skip:].any())):
        return 0
    return min(previous.rank - skip, previous.b.shape[0], previous.a.shape[1])


def past(previous: LoraPair | None, skip: int) -> LoraPair | None:
    """Return what earlier rounds left in a global pair, in as few slots as can hold it exactly.

    Args:
        previous: The global pair of the round before, scaling folded; a [R, I], b [O, R].
        skip: Slots at the front that are no history: those clients train on.

    Returns:
        At most min(O, I) slots, equal to those from `skip` on up to rounding; None if there are none, or one of their
        factors is all zeros.
    """
    enough = num_past(previous, skip)
    if previous is None or not enough:
        return None
    rest = replace(previous, a=previous.a[skip:], b=previous.b[:, skip:])
    return truncate(rest, enough) if rest.rank > enough else rest


def appended(new: LoraAdapter, previous: LoraAdapter, trained: Mapping[str, int]) -> LoraAdapter:
    """Return what a round added to the base.

    Args:
        new: The global adapter after the round.
        previous: The one before it, as the round's fold was given it.
        trained: Module path -> slots clients train on, 0 where it is missing.

    Returns:
        The last slots of every module, scaling 1; modules that nobody trained or that gained none are left out, and so
        are dense tensors, which clients receive whole.

    Invariants:
        Added to the base round after round, it makes the base hold all of the global adapter but the trained slots.
    """
    pairs, before = {}, fold_scaling(previous).pairs
    for path, pair in fold_scaling(new).pairs.items():
        old, skip = before.get(path), trained.get(path, 0)
        start = skip + num_past(old, skip)
        # A module nobody trained is the previous one, uncut: its last slots are in the base already.
        if pair.rank > start and not (old is not None and _is_same(pair, old)):
            pairs[path] = replace(pair, a=pair.a[start:].contiguous(), b=pair.b[:, start:].contiguous())
    return LoraAdapter(pairs)


def _is_same(pair: LoraPair, old: LoraPair) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in ((pair.a, old.a), (pair.b, old.b)))
