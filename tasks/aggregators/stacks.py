"""Clients' products gathered side by side: the one accumulator behind every method that averages products.

A weighted sum of products is itself one pair: `sum_k w_k b_k a_k = [w_1 b_1 ... w_K b_K] [a_1; ...; a_K]`. So nothing
is multiplied out while updates come in; how the stack becomes one adapter is the method's own `combine`.

Legend of dimensions: R rank, S sum of ranks, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, fold_scaling, layer_text, refuse_misfit
from tasks.adapters.products import f64
from tasks.aggregators.running_means import lend_module, own_module
from tasks.aggregators.slot_means import SlotMeans, read_out
from tasks.errors import AdapterShapeError


@dataclass(frozen=True, eq=False)
class Term:
    """One client's part of a module's sum.

    Args:
        pair: Scaling folded; float32, or float64 for float64 inputs; a copy of what the client sent.
        weight: The client's weight, as given.
        dtype: What the client sent.
        subject: Whom an error names.
    """

    pair: LoraPair
    weight: float
    dtype: torch.dtype
    subject: str


Combine = Callable[[str, Sequence[Term], LoraPair | None], LoraPair]
"""(module path, terms in client order, the previous global pair with its scaling folded) -> the new pair."""


class ProductTerms:
    """All clients' factors, in the order of their positions, and the means of their dense tensors.

    Memory is the sum of the clients' adapters.
    """

    def __init__(self) -> None:
        self.modules: dict[str, list[Term]] = {}
        self.dense = SlotMeans()

    def add(self, update: LoraAdapter, weight: float, *, subject: str) -> None:
        """Take in one update.

        Args:
            update: Any scaling, ranks and float dtypes; never written to or kept.
            weight: A positive finite weight.
            subject: Whom an error names.

        Raises:
            AdapterShapeError: A module's layer or a dense tensor's shape differs from those before, or a rank is 0.
        """
        with torch.no_grad():
            terms = {path: _term(pair, weight, subject) for path, pair in update.pairs.items()}
        for path, term in terms.items():
            _check_fits(term.pair, self.modules.get(path, ()), f"{subject}, module {path}")
        self.dense.add(LoraAdapter({}, update.dense), weight, subject=subject)
        for path, term in terms.items():
            self.modules.setdefault(path, []).append(term)

    def absorb(self, later: Self) -> None:
        """Take over the terms of later positions.

        Args:
            later: Given up.

        Raises:
            AdapterShapeError: The two do not fit together.
        """
        for path, terms in later.modules.items():
            _check_fits(terms[0].pair, self.modules.get(path, ()), f"a later block of updates, module {path}")
        self.dense.absorb(later.dense)
        for path, terms in later.modules.items():
            self.modules.setdefault(path, []).extend(terms)


def weave(gathered: ProductTerms, previous: LoraAdapter | None, combine: Combine) -> LoraAdapter:
    """Turn gathered terms into an adapter, module by module; what nobody trained keeps the previous value.

    Args:
        gathered: Given up.
        previous: The global adapter of the round before, any scaling.
        combine: The method.

    Returns:
        Scaling 1, in the clients' dtype.

    Raises:
        AdapterShapeError: The previous adapter holds a module or tensor of the same name and other sizes.
        NonFiniteUpdateError: A client's factor holds NaN or infinity, which no SVD would survive; names the update.
    """
    old = LoraAdapter({}) if previous is None else fold_scaling(previous)
    pairs = dict(old.pairs)
    with torch.no_grad():
        for path, terms in gathered.modules.items():
            for term in terms:
                check_finite(LoraAdapter({path: term.pair}), term.subject)
            before = old.pairs.get(path)
            if before is not None:
                _check_fits(before, terms, f"previous adapter, module {path}")
            pairs[path] = _finished(combine(path, terms, before), terms)
    dense = read_out(gathered.dense, LoraAdapter({}, old.dense)).dense
    return LoraAdapter(pairs, dense)


def weighted_mean(terms: Sequence[Term]) -> LoraPair:
    """Return the weighted mean of products as one pair of rank S, exact and never multiplied out.

    Args:
        terms: At least one; of one layer.

    Returns:
        a [S, I] and b [O, S], float64; each weight's share of the sum stands on b alone.
    """
    total = sum(term.weight for term in terms)
    return stacked([scaled(t.pair, t.weight / total) for t in terms])


def scaled(pair: LoraPair, by: torch.Tensor | float) -> LoraPair:
    """Multiply the product of every slot.

    Args:
        pair: a [R, I], b [O, R].
        by: One number, or one per slot [R].

    Returns:
        The same `a`; b [O, R], float64. Only one factor is multiplied: on both, the number would count squared.
    """
    return replace(pair, b=f64(pair.b) * by)


def coverage(terms: Sequence[Term], num_slots: int) -> torch.Tensor:
    """Return which share of the weight owns each slot.

    Args:
        terms: At least one; a client of rank R_k owns slots 0..R_k-1.
        num_slots: Slots to tell about; those that nobody owns have coverage 0.

    Returns:
        [num_slots] float64, 1 for slot 0, never rising.
    """
    owned = torch.zeros(num_slots, dtype=torch.float64)
    for term in terms:
        owned[: term.pair.rank] += term.weight
    return owned / sum(term.weight for term in terms)


def stacked(pairs: Sequence[LoraPair]) -> LoraPair:
    """Return the sum of updates as one pair.

    Args:
        pairs: At least one, scaling 1, of one layer; pair k of rank R_k.

    Returns:
        a [S, I], b [O, S], float64, S the sum of ranks.
    """
    a = torch.cat([f64(pair.a) for pair in pairs])
    b = torch.cat([f64(pair.b) for pair in pairs], dim=1)
    return LoraPair(a, b, 1.0, pairs[0].form)


def largest_rank(terms: Sequence[Term], before: LoraPair | None) -> int:
    """Return the largest rank seen, the previous pair's included: the rank of most methods' results."""
    return max([term.pair.rank for term in terms] + ([before.rank] if before is not None else []))


def _term(pair: LoraPair, weight: float, subject: str) -> Term:
    own = own_module(lend_module(pair, weight))
    return Term(LoraPair(own.a, own.b, 1.0, own.form), weight, own.dtype, subject)


def _finished(pair: LoraPair, terms: Sequence[Term]) -> LoraPair:
    dtype = terms[0].dtype
    for term in terms[1:]:
        dtype = torch.promote_types(dtype, term.dtype)
    return LoraPair(pair.a.to(dtype), pair.b.to(dtype), 1.0, terms[0].pair.form)


def _check_fits(pair: LoraPair, terms: Sequence[Term], subject: str) -> None:
    if not pair.rank:
        raise AdapterShapeError(subject, "has rank 0", expected="rank 1 or more")
    if not terms:
        return
    like = terms[0].pair
    if (pair.form, pair.b.shape[0]) != (like.form, like.b.shape[0]):
        refuse_misfit(subject, layer_text(pair.form, pair.b.shape[0]), layer_text(like.form, like.b.shape[0]))
