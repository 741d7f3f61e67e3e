"""FedAvg on LoRA factors: the weighted mean, for cohorts of one rank."""

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.slot_means import SlotMeans, read_out
from tasks.errors import MixedRanksError


def fedavg() -> Fold:
    r"""Average the factors of clients that all trained one rank.

    $\bar a = \sum_k w_k a_k / \sum_k w_k$, and the same for b. The product of the means is not the mean of the
    products; the difference is the weighted covariance of the factors.

    Returns:
        An empty fold. Its result has the inputs' dtype, accumulated in float32, or float64 for float64 inputs.

    Raises:
        MixedRanksError: At the end: clients trained one module at different ranks.
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite.

    Invariants:
        One client -> itself. Clients that return what they were given -> the same adapter, bit for bit.

    References:
        H. Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Agüera y Arcas, "Communication-Efficient
        Learning of Deep Networks from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, applied to
        LoRA factors as in Jianyi Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning",
        ICASSP 2024, https://arxiv.org/abs/2305.05644. Both recalled, not re-read for this code.
        We differ: the scale is folded into b first; modules, dense tensors and slots beyond the clients' rank that
        nobody trained keep the previous global value; counters take the maximum.
    """
    return OrderedFold("fedavg", SlotMeans, _read_out_equal_ranks)


def _read_out_equal_ranks(means: SlotMeans, previous: LoraAdapter | None) -> LoraAdapter:
    for path, module in means.modules.items():
        if len(module.ranks) > 1:
            raise MixedRanksError(
                f"module {path}",
                "fedavg cannot average clients of different ranks",
                got="ranks " + ", ".join(map(str, sorted(module.ranks))),
                expected="one rank for all clients",
                remedy="aggregate with rbla or zero_pad, or give every client the same rank",
            )
    return read_out(means, previous)
