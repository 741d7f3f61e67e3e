"""FlexLoRA: average the products, then cut the mean back to a rank by SVD."""

from collections.abc import Sequence
from functools import partial

from tasks.adapters.lora import LoraPair
from tasks.adapters.products import truncate
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.stacks import ProductTerms, Term, largest_rank, weave, weighted_mean


def flexlora(energy: float = 1.0) -> Fold:
    r"""Average the clients' products and keep the best approximation of the largest rank.

    $\Delta W = \sum_k w_k b_k a_k / \sum_k w_k$, and one SVD serves every rank: a client of rank R_k gets the first R_k
    slots, which are the best approximation of that rank. The mean is never multiplied out: QR of the stacked factors
    and an SVD of the small core, in float64, where the sum of ranks is below the layer's sizes.

    Args:
        energy: Keep only as many slots as hold this share of the squared singular values (FLoRIST's threshold); 1
            keeps all up to the largest rank.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), fewer with an
        energy threshold; slots by falling singular value, balanced; the inputs' dtype.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite.

    Invariants:
        One client -> its product. Only products matter, not how they are factored. The error against the mean is the
        tail of its spectrum. Not a fixed point of rounds in which nobody learns: slot j shrinks by its coverage.

    References:
        Jiamu Bai, Daoyuan Chen, Bingchen Qian, Liuyi Yao, Yaliang Li, "Federated Fine-tuning of Large Language Models
        under Heterogeneous Tasks and Client Resources", NeurIPS 2024, https://arxiv.org/abs/2402.11505. Read: the
        abstract and the public code (alibaba/FederatedScope, branch FlexLoRA). We differ: the split is balanced (there:
        all singular values in b), the SVD works on factors (there: on the dense product), dense tensors are averaged.
        The threshold is inspired by FLoRIST, https://arxiv.org/abs/2506.09199 (abstract read), which does the same
        with SVDs in place of QRs.
    """
    return OrderedFold(
        f"flexlora energy={energy}", ProductTerms, partial(weave, combine=partial(_combine, energy=energy))
    )


def _combine(path: str, terms: Sequence[Term], before: LoraPair | None, *, energy: float) -> LoraPair:
    del path
    return truncate(weighted_mean(terms), largest_rank(terms, before), energy=energy)
