"""raFLoRA: the mean of products in which every slot is averaged over its owners, cut back to a rank by SVD."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tasks.adapters.lora import LoraPair
from tasks.adapters.products import truncate
from tasks.aggregators.fold import Fold
from tasks.aggregators.history import past
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.stacks import ProductTerms, Term, coverage, largest_rank, scaled, stacked, weave


def raflora(coverage_exponent: float = 1.0, *, canonical: bool = False, energy: float = 1.0) -> Fold:
    r"""Average the clients' products slot by slot over the owners, and keep the best approximation of the largest rank.

    $\Delta W = \sum_r \sum_{k: R_k > r} \frac{w_k}{W c_r} b_{k,r} a_{k,r}$ with $W = \sum_k w_k$ over the module's
    clients and coverage $c_r = \sum_{k: R_k > r} w_k / W$. Where plain means of products shrink a slot by its coverage
    every round (rank collapse), this leaves it at full strength; unlike RBLA, the SVD spreads what few clients own over
    slots that all clients see.

    Args:
        coverage_exponent: Coverage enters as $c_r$ to this power: 1 is raFLoRA, 0 is FlexLoRA's mean, between them lies
            a trade of dilution against owners' bias.
        canonical: Bring each client's pair to its balanced SVD first, so that slot r means the client's r-th strongest
            direction, however the client factored its product.
        energy: Keep only as many slots as hold this share of the squared singular values; 1 keeps all.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), fewer with an
        energy threshold; slots by falling singular value, balanced; the inputs' dtype.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite.

    Invariants:
        One client -> its product. Equal ranks -> FlexLoRA. Clients that return what they were given -> the same
        product. Slots that nobody owns this round keep the previous global value. Depends on the clients' factors, not
        only on their products, unless canonical.

    References:
        "raFLoRA", 2026, https://arxiv.org/abs/2602.13486: abstract and third-party notes read; the slot weights are
        inferred from them. RB-LoRA (Findings of EACL 2026) states the same formula on its code page
        (seonha01/rb-lora), whose released code never applies the coverage. No code of raFLoRA was found.
        We differ: single slots rather than partitions between distinct ranks (the same sum), the SVD works on factors,
        slots with no owner keep the previous value, dense tensors are averaged. The exponent and the canonical
        variant are ours.
    """
    combine = partial(_combine, exponent=coverage_exponent, canonical=canonical, energy=energy)
    name = f"raflora^{coverage_exponent} canonical={canonical} energy={energy}"
    return OrderedFold(name, ProductTerms, partial(weave, combine=combine))


def raflora_canonical(coverage_exponent: float = 1.0, energy: float = 1.0) -> Fold:
    """Start `raflora` on canonical factors: only the clients' products matter.

    Args:
        coverage_exponent: As in `raflora`.
        energy: As in `raflora`.

    Returns:
        An empty fold.

    Invariants:
        Those of `raflora`. A fixed point of rounds in which nobody learns once the global slots are ordered by energy,
        as this method's own results are, and as long as singular values differ: directions of one strength have no
        order, so clients of different ranks may bring back different ones as their slot r.

    References:
        A variant of ours; see `raflora`.
    """
    return raflora(coverage_exponent, canonical=True, energy=energy)


def _combine(
    path: str, terms: Sequence[Term], before: LoraPair | None, *, exponent: float, canonical: bool, energy: float
) -> LoraPair:
    del path
    if canonical:
        terms = [replace(t, pair=truncate(stacked([t.pair]), t.pair.rank)) for t in terms]
    num_slots, total = largest_rank(terms, None), sum(term.weight for term in terms)
    damping = coverage(terms, num_slots) ** exponent
    parts = [scaled(t.pair, t.weight / total / damping[: t.pair.rank]) for t in terms]
    unowned = past(before, num_slots)
    mean = stacked(parts if unowned is None else [*parts, unowned])
    return truncate(mean, largest_rank(terms, before), energy=energy)
