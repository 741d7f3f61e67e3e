"""FedEx-LoRA: average the factors, and add to the base what their product misses of the mean of products."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from tasks.adapters.lora import LoraPair
from tasks.adapters.products import pair_norm, truncate
from tasks.aggregators.fold import Fold
from tasks.aggregators.history import past
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.stacks import ProductTerms, Term, stacked, weave
from tasks.errors import MixedRanksError

_ROUNDING = 4 * torch.finfo(torch.float64).eps  # per client, of the factors' sizes: what means of equal factors miss


def fedex() -> Fold:
    r"""Average factors of one rank, and append the residual that makes the product exact.

    With means $\bar a = \sum_k w_k a_k$, $\bar b = \sum_k w_k b_k$ for weights that sum to one, the residual is
    $\sum_k w_k b_k a_k - \bar b \bar a = \sum_k w_k (b_k - \bar b)(a_k - \bar a)$: clients go on training the means on
    a base that has the residual added. Deviations sum to zero, so its rank is at most (K - 1) R.

    Returns:
        An empty fold. Its result holds, per module, [the means, R slots | what earlier rounds added to the base, at
        most min(O, I) slots | this round's residual, min((K - 1) R, O, I) slots, none where it would be nothing but
        rounding: for one client, or clients that agree on a factor]; the inputs' dtype.

    Raises:
        MixedRanksError: At the end: clients trained one module at different ranks.
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite.

    Invariants:
        What the round adds is exactly the weighted mean of products. One client -> itself. The first R slots are
        `fedavg`'s. Not valid where a client holds fewer slots than the means have: it would see the residual without
        the product that it completes. The rank must stay the same from round to round.

    References:
        Raghav Singhal, Kaustubh Ponkshe, Praneeth Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and
        Efficient Fine-Tuning of Foundation Models", ACL 2025, https://arxiv.org/abs/2410.09432. Read: the public code
        (RaghavSinghal10/fedex-lora) and third-party notes; authors recalled. We differ: the residual stays factored
        (there: a dense matrix, transposed for every layer, which is right for Conv1D only), weights are the caller's,
        earlier residuals stay in the global adapter, dense tensors are averaged.
    """
    return OrderedFold("fedex", ProductTerms, partial(weave, combine=_combine))


def _combine(path: str, terms: Sequence[Term], before: LoraPair | None) -> LoraPair:
    rank = _common_rank(path, terms)
    total = sum(term.weight for term in terms)
    shares = [term.weight / total for term in terms]
    wide = [stacked([term.pair]) for term in terms]
    mean = replace(
        wide[0],
        a=sum((s * p.a for s, p in zip(shares, wide, strict=True)), start=0.0 * wide[0].a),
        b=sum((s * p.b for s, p in zip(shares, wide, strict=True)), start=0.0 * wide[0].b),
    )
    parts = (mean, past(before, rank), _residual(wide, shares, mean))
    return stacked([part for part in parts if part is not None])


def _residual(pairs: Sequence[LoraPair], shares: Sequence[float], mean: LoraPair) -> LoraPair | None:
    weighed = list(zip(shares, pairs, strict=True))
    deviations = stacked([replace(p, a=p.a - mean.a, b=s * (p.b - mean.b)) for s, p in weighed])
    size = sum(s * float(p.b.norm() * p.a.norm()) for s, p in weighed)
    if len(pairs) == 1 or pair_norm(deviations) <= _ROUNDING * len(pairs) * size:
        return None
    enough = min((len(pairs) - 1) * mean.rank, mean.b.shape[0], mean.a.shape[1])
    return truncate(deviations, enough)


def _common_rank(path: str, terms: Sequence[Term]) -> int:
    ranks = sorted({term.pair.rank for term in terms})
    if len(ranks) > 1:
        raise MixedRanksError(
            f"module {path}",
            "fedex cannot complete means of different ranks: a client that holds fewer slots would see the residual "
            "without the product it completes",
            got="ranks " + ", ".join(map(str, ranks)),
            expected="one rank for all clients",
            remedy="aggregate with raflora or flora_stack, or give every client the same rank",
        )
    return ranks[0]
