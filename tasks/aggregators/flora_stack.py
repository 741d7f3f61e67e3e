"""FLoRA stacking: the exact mean of products, which every client adds to its base before it starts anew."""

from collections.abc import Mapping, Sequence
from functools import partial

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import truncate
from tasks.aggregators.fold import Fold
from tasks.aggregators.history import appended, past
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.stacks import ProductTerms, Term, stacked, weave, weighted_mean


def flora_stack(recompress_rank: int = 0) -> Fold:
    r"""Stack the clients' factors, so that their product is the weighted mean of the clients' products.

    $[w_1 b_1 \ldots w_K b_K] [a_1; \ldots; a_K] = \sum_k w_k b_k a_k$ for weights that sum to one, standing on b alone:
    on both factors they would count squared. Clients train from a fresh pair on a base that holds all earlier rounds,
    so the round's mean is added to the previous adapter's product. A downlink carries the sum of all ranks to everyone.

    Args:
        recompress_rank: Cut each round's stack to this many slots by SVD before it is appended; the result is then no
            longer exact. 0 appends the stack as it is.

    Returns:
        An empty fold. Its result holds, per module, [what earlier rounds added, at most min(O, I) slots | this round's
        stack, the sum of the clients' ranks]; the inputs' dtype.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite.

    Invariants:
        Without recompression: the exact weighted mean, for any mix of ranks, added to the previous product. Clients
        that return a fresh pair, whose product is zero -> the same product.

    References:
        Ziyao Wang, Zheyu Shen, Yexiao He, Guoheng Sun, Hongyi Wang, Lingjuan Lyu, Ang Li, "FLoRA: Federated Fine-Tuning
        Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024,
        https://arxiv.org/abs/2409.05976. Read: the public code (ATP-1010/FederatedLLM) and third-party notes; authors
        recalled. We differ: the weights are on b (there: on a), ranks come from the data (there: configured by hand),
        earlier rounds stay in the global adapter (there: merged into the base alone), dense tensors are averaged. That
        code's users report no convergence over many short rounds, because every round restarts from zero.
    """
    combine = partial(_combine, recompress_rank=recompress_rank)
    return OrderedFold(f"flora_stack cut={recompress_rank}", ProductTerms, partial(weave, combine=combine))


def round_stack(new: LoraAdapter, previous: LoraAdapter, ranks: Mapping[str, int]) -> LoraAdapter:
    """Return what every client adds to its base after a round: all the round appended.

    Args:
        new: The global adapter after the round.
        previous: The one before it.
        ranks: Module path -> rank that clients train; no part of the global adapter here, as clients start anew.

    Returns:
        The round's stack, scaling 1.
    """
    del ranks
    return appended(new, previous, {})


def _combine(path: str, terms: Sequence[Term], before: LoraPair | None, *, recompress_rank: int) -> LoraPair:
    del path
    mean = weighted_mean(terms)
    if 0 < recompress_rank < mean.rank:
        mean = truncate(mean, recompress_rank)
    history = past(before, 0)
    return mean if history is None else stacked([history, mean])
