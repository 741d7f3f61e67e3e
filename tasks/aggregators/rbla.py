"""RBLA: average every rank slot over the clients that own it."""

from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.slot_means import SlotMeans, read_out


def rbla() -> Fold:
    r"""Average every rank slot over the clients that own it.

    A client of rank R_k says nothing about slots r >= R_k, so it has no weight there:
    $\bar a_r = \sum_{k: R_k > r} w_k a_{k,r} / \sum_{k: R_k > r} w_k$, and the same for columns of b. A slot that only
    one client owns keeps that client's values at full strength, however little data it holds; where large ranks sit
    with narrow data this hurts the global adapter, and `zero_pad` is the cautious choice.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), the inputs'
        dtype, accumulated in float32, or float64 for float64 inputs.

    Raises:
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: At the end: a value was NaN or infinite; never read as "absent".

    Invariants:
        One client -> itself. Equal ranks -> weighted mean of factors. Clients that return what they were given ->
        the same adapter, bit for bit. Client order and weight scale irrelevant up to rounding; arrival order and
        cuts of the tree irrelevant to the bit.

    References:
        Shuaijun Chen, Omid Tavallaie, Niousha Nazemi, Albert Y. Zomaya, "RBLA: Rank-Based-LoRA-Aggregation for
        Fine-Tuning Heterogeneous Models in FLaaS", ICWS 2024 (LNCS), https://arxiv.org/abs/2408.08699.
        Read: the abstract, for the idea; the first author's public code (shuaijunchenex/usyd-learning-dev), for the
        rule. The paper's tables were not read.
        We differ: the scale is folded into b first (that code runs at equal scale only); ownership comes from declared
        ranks, not from NaN padding, and NaN is an error; slots and layers with no owner keep the previous global value
        (there: NaN or zero); modules are a union over clients, not the first client's; counters take the maximum.
    """
    return OrderedFold("rbla", SlotMeans, read_out)
