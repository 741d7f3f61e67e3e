"""Delta-SVD: add to a larger global adapter only what clients changed on the share they were given."""

from collections.abc import Sequence
from functools import partial

from tasks.adapters.lora import LoraPair
from tasks.adapters.products import truncate
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.stacks import (
    ProductTerms,
    Term,
    coverage,
    largest_rank,
    scaled,
    stacked,
    weave,
    weighted_mean,
)


def delta_svd(bank_factor: int = 2, energy: float = 1.0) -> Fold:
    r"""Add the clients' mean change to the global product, kept at more slots than any client trains.

    $G \leftarrow G + \sum_k w_k (b_k a_k - T_{R_k}(G)) / \sum_k w_k$, T_R the first R slots of G, which are its best
    approximation of rank R. The slots sum up by coverage $c_r = \sum_{k: R_k > r} w_k / \sum_k w_k$, so no share has to
    be kept: $G \leftarrow \sum_k w_k b_k a_k / \sum_k w_k + \sum_r (1 - c_r) G_r$.

    Args:
        bank_factor: Slots kept on the server, as a multiple of the largest rank that clients of the round trained.
        energy: Keep only as many slots as hold this share of the squared singular values; 1 keeps all.

    Returns:
        An empty fold. Without a previous adapter its result is FlexLoRA's, of the largest rank; with one, it has
        `bank_factor` times that rank per module, no more than the layer's smaller size unless clients' ranks are
        larger, and never fewer slots than the previous adapter (but for an energy threshold); slots by falling
        singular value, balanced; the inputs' dtype.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite.

    Invariants:
        One client without history -> its product. Clients that return what they were given -> the same product. Only
        products matter, not how clients factor them. Where all clients hold all of G, the mean of products.

    References:
        "FedHL", 2025, https://arxiv.org/abs/2505.18494: the abstract alone was read. It adds clients' changes, relative
        to what they received, to a full-rank server model, under weights that minimise drift. We differ: weights are
        the caller's, the server model is itself factored and cut by SVD, dense tensors are averaged.
    """
    combine = partial(_combine, bank_factor=bank_factor, energy=energy)
    return OrderedFold(f"delta_svd x{bank_factor} energy={energy}", ProductTerms, partial(weave, combine=combine))


def _combine(path: str, terms: Sequence[Term], before: LoraPair | None, *, bank_factor: int, energy: float) -> LoraPair:
    del path
    mean, trained = weighted_mean(terms), largest_rank(terms, None)
    if before is None:
        return truncate(mean, trained, energy=energy)
    untouched = scaled(before, 1.0 - coverage(terms, before.rank))
    bank = min(bank_factor * trained, before.b.shape[0], before.a.shape[1])
    return truncate(stacked([mean, untouched]), max(bank, trained, before.rank), energy=energy)
