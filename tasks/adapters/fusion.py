"""One adapter out of a client's own and the shared one, and the search for how much of each.

Three published conventions differ; for scalar factors a_p = b_p = 1, a_g = b_g = 2 and weights (0.6, 0.4) they give

- "cat" and "svd": the weighted sum of the products, 0.6 * 1 + 0.4 * 4 = 2.2, exact or cut to a rank;
- "factors": the product of the weighted sums (LoRAHub), (0.6 * 1 + 0.4 * 2)^2 = 1.96;
- PEFT's `add_weighted_adapter("linear")`: the square root of a weight on each factor, (0.7746 * 1 + 0.6325 * 2)^2 =
  4.1596. Not offered: negative weights have no root, and halves of one adapter with itself give twice that adapter.

Not here: averaging over clients (`tasks.aggregators`), measuring a loss (the caller brings it).
Legend of dimensions: R rank, I inputs, O outputs; p personal, g shared (global).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, get_args

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, layer_text
from tasks.adapters.products import check_rank, f64
from tasks.adapters.resize import resize
from tasks.errors import AdapterShapeError, ConfigError, InvalidWeightError, MixedRanksError, UnknownNameError

Form = Literal["cat", "svd", "factors"]
Weights = tuple[float, float]
"""(of the personal adapter, of the shared one)"""

SHARED_ALONE: Weights = (0.0, 1.0)
PERSONAL_ALONE: Weights = (1.0, 0.0)


@dataclass(frozen=True)
class Fusion:
    """How a search ended.

    Args:
        weights: What to give to `fuse`.
        loss: Raw loss there, without penalty; infinite where it was not a finite number, None where none was measured.
        personal_loss: Raw loss of the personal adapter alone.
        shared_loss: Raw loss of the shared adapter alone.
        evaluations: How often the loss was measured.
        form: What to give to `fuse`.
    """

    weights: Weights
    loss: float | None
    personal_loss: float | None
    shared_loss: float | None
    evaluations: int
    form: Form


def fuse(
    personal: LoraAdapter, shared: LoraAdapter, weights: Weights, *, form: Form = "cat", rank: int = 0
) -> LoraAdapter:
    r"""Join a client's own adapter with the shared one.

    "cat": $w_p \Delta W_p + w_g \Delta W_g$ as one pair, the slots of both side by side, the weights on b alone.
    "svd": the best cut of that sum at `rank`. "factors": $(w_p b_p + w_g b_g)(w_p a_p + w_g a_g)$, which holds the
    squares of the weights and the cross terms $w_p w_g (b_p a_g + b_g a_p)$, so it depends on the factors' gauge.

    Args:
        personal: What the client keeps at home; a [R_p, I], b [O, R_p], any scaling.
        shared: The global adapter; a [R_g, I], b [O, R_g], any scaling.
        weights: (w_p, w_g), finite; may be zero or negative and need not sum to 1.
        form: Which sum.
        rank: For "svd" only: slots of every module, filled up with zeros; 0 for the larger of the two ranks.

    Returns:
        Scaling 1, in the wider of the two dtypes, computed in float64; inputs untouched. A module that only one side
        has counts with that side's weight (on b alone) in every form. A dense tensor lies between the two,
        $(w_p p + w_g g) / (w_p + w_g)$ with negative weights read as 0, the shared one where both are; one that only
        one side has is taken as it is; counters take the maximum.

    Raises:
        UnknownNameError: No such form.
        InvalidWeightError: A weight is not a finite number.
        ConfigError: A rank was given to another form than "svd".
        MixedRanksError: "factors" and different ranks of one module.
        AdapterShapeError: Layers or dense tensors of one name differ, or `rank` is negative.
        NonFiniteUpdateError: A value is NaN or infinite.

    Invariants:
        (1, 0) -> the personal update, (0, 1) -> the shared one ("svd" up to its cut). "cat" has rank R_p + R_g whatever
        the weights. Halves of one adapter with itself -> that update.

    References:
        "FDLoRA: Personalized Federated Learning of Large Language Model via Dual LoRA Tuning", 2024,
        https://arxiv.org/abs/2406.07925: abstract read, fusion formula ("factors") recalled; no official code found.
        Chengsong Huang et al., "LoraHub", 2023, https://arxiv.org/abs/2307.13269: code read, same formula. We differ:
        "cat" is the default, having no cross terms and no need of equal ranks; scales are folded into b first.
    """
    _check_request(weights, form, rank)
    check_finite(personal, "personal adapter")
    check_finite(shared, "shared adapter")
    with torch.no_grad():
        pairs = {}
        for path in {*personal.pairs, *shared.pairs}:
            terms = [(s.pairs[path], w) for s, w in zip((personal, shared), weights, strict=True) if path in s.pairs]
            pairs[path] = _fused_pair(path, terms, form, rank)
        dense = dict(personal.dense)
        for name, tensor in shared.dense.items():
            dense[name] = _fused_dense(name, dense[name], tensor, weights) if name in dense else tensor
    return LoraAdapter(pairs, dense)


def search_fusion(  # noqa: PLR0913  the two sides, how good a fusion is, and LoRAHub's own settings under its names
    personal: LoraAdapter,
    shared: LoraAdapter,
    loss: Callable[[LoraAdapter], float] | None,
    *,
    form: Form = "cat",
    bound: float = 1.5,
    penalty: float = 0.05,
    budget: int = 40,
) -> Fusion:
    r"""Find the weights of a fusion by trying them on a client's own examples; no gradients, no randomness.

    The shared adapter alone is measured first, the personal one second; the rest of the budget goes to DIRECT, which
    divides the square of weights from its centre (0, 0) on. What beats both sides alone in raw loss competes with the
    better side for the least $loss + penalty (|w_p| + |w_g|) / 2$. So without evidence a client stays with one side,
    and with equal losses with the shared one.

    Args:
        personal: What the client keeps at home.
        shared: The global adapter.
        loss: Fused adapter -> mean loss on the client's few examples; anything but a finite number is read as
            infinitely bad. None where there are none to measure on: the shared adapter alone, unmeasured.
        form: How to fuse; "svd" at the larger of the two ranks.
        bound: Weights are sought from -bound to bound, at least 1 so that both sides alone are within.
        penalty: What weights of mean size 1 cost, in units of the loss.
        budget: Measurements to make at most, both sides alone included [2, ...).

    Returns:
        The winner, its weights to six decimals.

    Raises:
        ConfigError: `budget`, `bound` or `penalty` is out of range.
        RankweaveError: Any of `fuse`: the two sides cannot be fused in this form.

    Invariants:
        The loss is never above that of either side alone, and never measured twice at the same weights.

    References:
        As for `fuse`. Range, penalty and few-shot loss are LoRAHub's; of FDLoRA's search we know that it is
        gradient-free. We differ: both sides alone come first, then DIRECT (D. R. Jones et al., JOTA 1993, recalled;
        SciPy's locally biased variant) instead of Nevergrad's seeded NGOpt.
    """
    _check_search(bound, penalty, budget)
    _check_request(SHARED_ALONE, form, 0)
    if loss is None:
        return Fusion(SHARED_ALONE, None, None, None, 0, form)
    from scipy.optimize import direct

    tried: dict[Weights, float] = {}

    def objective(point: np.ndarray) -> float:
        w_p, w_g = (round(float(weight), 6) for weight in point)
        # The optimiser takes its limit as a hint, so the budget is kept here.
        if (w_p, w_g) not in tried and len(tried) < budget:
            measured = float(loss(fuse(personal, shared, (w_p, w_g), form=form)))
            tried[w_p, w_g] = measured if math.isfinite(measured) else math.inf
        return _penalised((w_p, w_g), tried.get((w_p, w_g), math.inf), penalty)

    for side in (SHARED_ALONE, PERSONAL_ALONE):
        objective(np.array(side))
    if len(tried) < budget:
        direct(objective, [(-bound, bound)] * 2, maxfun=budget)
    best = _winner(tried, penalty)
    return Fusion(best, tried[best], tried[PERSONAL_ALONE], tried[SHARED_ALONE], len(tried), form)


def _winner(tried: dict[Weights, float], penalty: float) -> Weights:
    # `min` keeps the first of equals, so the order of trying decides ties.
    side = min((SHARED_ALONE, PERSONAL_ALONE), key=lambda weights: tried[weights])
    better = [weights for weights, loss in tried.items() if loss < tried[side]]
    return min([side, *better], key=lambda weights: _penalised(weights, tried[weights], penalty))


def _penalised(weights: Weights, loss: float, penalty: float) -> float:
    return loss + penalty * (abs(weights[0]) + abs(weights[1])) / 2


def _fused_pair(path: str, terms: Sequence[tuple[LoraPair, float]], form: Form, rank: int) -> LoraPair:
    pairs = [pair for pair, _ in terms]
    _check_alike(f"module {path}", [layer_text(pair.form, pair.b.shape[0]) for pair in pairs])
    fused = _factor_sum(path, terms) if form == "factors" and len(terms) == 2 else _side_by_side(terms)
    if form == "svd":
        fused = resize(LoraAdapter({path: fused}), rank or max(pair.rank for pair in pairs)).pairs[path]
    dtype = reduce(torch.promote_types, (factor.dtype for pair in pairs for factor in (pair.a, pair.b)))
    return LoraPair(fused.a.to(dtype), fused.b.to(dtype), 1.0, pairs[0].form)


def _side_by_side(terms: Sequence[tuple[LoraPair, float]]) -> LoraPair:
    slots_b = [f64(pair.b) * (weight * pair.scaling) for pair, weight in terms]
    return LoraPair(torch.cat([f64(pair.a) for pair, _ in terms]), torch.cat(slots_b, dim=1))


def _factor_sum(path: str, terms: Sequence[tuple[LoraPair, float]]) -> LoraPair:
    (p, w_p), (g, w_g) = terms
    if p.rank != g.rank:
        got = f"{p.rank} (personal), {g.rank} (shared)"
        remedy = 'fuse with "cat" or "svd"'
        raise MixedRanksError(f"module {path}", '"factors" needs one rank on both sides', got=got, remedy=remedy)
    b = (w_p * p.scaling) * f64(p.b) + (w_g * g.scaling) * f64(g.b)
    return LoraPair(w_p * f64(p.a) + w_g * f64(g.a), b)


def _fused_dense(name: str, p: torch.Tensor, g: torch.Tensor, weights: Weights) -> torch.Tensor:
    texts = [f"{'floats' if t.is_floating_point() else 'counts'} {list(t.shape)}" for t in (p, g)]
    _check_alike(f"tensor {name}", texts)
    if not g.is_floating_point():
        return torch.maximum(p, g)
    # A head is no difference to the base model, so a negative weight must not throw it far outside of what was trained.
    w_p, w_g = (max(weight, 0.0) for weight in weights)
    share = w_p / (w_p + w_g) if w_p or w_g else 0.0
    return torch.lerp(f64(g), f64(p), share).to(torch.promote_types(p.dtype, g.dtype))


def _check_request(weights: Weights, form: str, rank: int) -> None:
    if form not in get_args(Form):
        raise UnknownNameError("fusion form", form, get_args(Form))
    if not all(math.isfinite(weight) for weight in weights):
        raise InvalidWeightError("fusion weights", "must be finite", got=weights, expected="two finite numbers")
    if rank and form != "svd":
        raise ConfigError("fusion rank", f'the form "{form}" has no rank to choose', got=rank, remedy='fuse with "svd"')
    check_rank("fused adapter", rank or 1)


def _check_search(bound: float, penalty: float, budget: int) -> None:
    for name, value, lowest in (("budget", budget, 2), ("bound", bound, 1.0), ("penalty", penalty, 0.0)):
        if not lowest <= value < math.inf:
            raise ConfigError(f"fusion {name}", "is out of range", got=value, expected=f"a finite number >= {lowest}")


def _check_alike(subject: str, sides: Sequence[str]) -> None:
    if sides[0] != sides[-1]:
        got = f"{sides[0]} (personal), {sides[1]} (shared)"
        remedy = "both must adapt the same base model with the same configuration"
        raise AdapterShapeError(subject, "differs between the two sides", got=got, remedy=remedy)
