"""FedSA: `a` is shared and averaged, `b` stays with each client."""

from dataclasses import replace

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, fold_scaling
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.slot_means import SlotMeans, read_out


def fedsa() -> Fold:
    r"""Average the rows of `a` over the clients that own them, and leave `b` to every client.

    $\bar a_r = \sum_{k: R_k > r} w_k a_{k,r} / \sum_{k: R_k > r} w_k$, as `rbla` does. There is no global product: the
    global adapter is a common `a` beside the `b` that a newcomer starts from.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), the previous
        adapter's `b` (zeros where there is none), the inputs' dtype, accumulated in float32, or float64 for float64
        inputs.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite, in a client's `b` too.

    Invariants:
        One client -> its `a`. Equal ranks -> weighted mean of `a`. What clients hold in `b` changes nothing. Clients
        that return what they were given -> the same adapter, bit for bit.

    References:
        Pengxin Guo, Shuang Zeng, Yanran Wang, Huijie Fan, Feifei Wang, Liangqiong Qu, "Selective Aggregation for
        Low-Rank Adaptation in Federated Learning", ICLR 2025, https://arxiv.org/abs/2410.01463. Read: third-party notes
        only; authors and title recalled.
        We differ: the paper has one rank; averaging rows over their owners is RBLA's rule on `a`. Modules, dense
        tensors and slots that nobody trained keep the previous value.
    """
    return OrderedFold("fedsa", SlotMeans, _read_out_a)


def _read_out_a(means: SlotMeans, previous: LoraAdapter | None) -> LoraAdapter:
    trained = list(means.modules)
    result = read_out(means, previous)
    # Here, because what is dropped below would hide a client that diverged.
    check_finite(result, "aggregate by fedsa")
    old = LoraAdapter({}) if previous is None else fold_scaling(previous)
    pairs = {path: replace(result.pairs[path], b=_home_b(result.pairs[path], old.pairs.get(path))) for path in trained}
    return LoraAdapter({**result.pairs, **pairs}, result.dense)


def _home_b(pair: LoraPair, old: LoraPair | None) -> torch.Tensor:
    b = torch.zeros_like(pair.b)
    if old is not None:
        b[:, : old.rank] = old.b.detach()
    return b
