"""The table of local methods: what a client's training step adds to plain LoRA; forms, validation and laws read it."""

from tasks.errors import UnknownNameError
from tasks.local_methods.alternating import Alternating
from tasks.local_methods.dp_sgd import DP_CLIP_NORM, DP_NOISE_MULTIPLIER, DpSgd
from tasks.local_methods.ffa import Ffa
from tasks.local_methods.hetlora_prune import PRUNE_GAMMA, PRUNE_LAMBDA, PRUNE_MIN_RANK, HetloraPrune
from tasks.local_methods.lora import PlainLora
from tasks.local_methods.prefix_nested import NESTED_WEIGHT, PrefixNested
from tasks.local_methods.promises import LocalMethodRow
from tasks.local_methods.proximal import INITIATING_ROUNDS, PROXIMAL_MU, Proximal
from tasks.local_methods.rm_lora import (
    MASK_PAIRED,
    MASK_SCOPE,
    MASK_SHARE,
    RM_FORM,
    RM_LAMBDA,
    TARGET_NORM,
    rm_lora,
)
from tasks.local_methods.sparse import SPARSITY, Sparse

LOCAL_METHODS: dict[str, LocalMethodRow] = {
    "lora": LocalMethodRow(
        name="lora",
        title="Plain LoRA",
        paper="https://arxiv.org/abs/2106.09685",
        start=PlainLora,
    ),
    "proximal": LocalMethodRow(
        name="proximal",
        title="FedProx: held close to what was received",
        paper="https://arxiv.org/abs/1812.06127",
        start=Proximal,
        penalises=True,
        options=(PROXIMAL_MU, INITIATING_ROUNDS),
    ),
    "rm_lora": LocalMethodRow(
        name="rm_lora",
        title="RM-LoRA: slots kept apart, a random share trained",
        paper="https://arxiv.org/abs/2407.12074",
        start=rm_lora,
        penalises=True,
        needs_factors=True,
        options=(RM_LAMBDA, RM_FORM, TARGET_NORM, MASK_SCOPE, MASK_SHARE, MASK_PAIRED),
    ),
    "prefix_nested": LocalMethodRow(
        name="prefix_nested",
        title="Prefix-nested training, after PreLort",
        paper="https://arxiv.org/abs/2606.15963",
        start=PrefixNested,
        penalises=True,
        needs_factors=True,
        options=(NESTED_WEIGHT,),
    ),
    "hetlora_prune": LocalMethodRow(
        name="hetlora_prune",
        title="HetLoRA: clients prune their last slots",
        paper="https://arxiv.org/abs/2401.06432",
        start=HetloraPrune,
        penalises=True,
        prunes=True,
        needs_factors=True,
        options=(PRUNE_GAMMA, PRUNE_LAMBDA, PRUNE_MIN_RANK),
    ),
    "ffa": LocalMethodRow(
        name="ffa",
        title="FFA: a frozen, b trained",
        paper="https://arxiv.org/abs/2403.12313",
        start=Ffa,
        trains="b",
    ),
    "alternating": LocalMethodRow(
        name="alternating",
        title="Alternating: b in odd rounds, a in even ones",
        paper="https://arxiv.org/abs/2410.22815",
        start=Alternating,
        trains="alternate",
    ),
    # Training is plain: what sets FDLoRA apart is a second adapter, which is trained after it and never sent.
    "fdlora": LocalMethodRow(
        name="fdlora",
        title="FDLoRA: a personal adapter beside the global one",
        paper="https://arxiv.org/abs/2406.07925",
        start=PlainLora,
        keeps_personal=True,
    ),
    "sparse": LocalMethodRow(
        name="sparse",
        title="Sparse, after SAFARI: a share of the slots switched off",
        paper="https://arxiv.org/abs/2204.02321",
        start=Sparse,
        needs_factors=True,
        leaves_out=True,
        options=(SPARSITY,),
    ),
    "dp_sgd": LocalMethodRow(
        name="dp_sgd",
        title="DP-SGD: examples hidden by clipping and noise",
        paper="https://arxiv.org/abs/1607.00133",
        start=DpSgd,
        guards_examples=True,
        needs_factors=True,
        options=(DP_CLIP_NORM, DP_NOISE_MULTIPLIER),
    ),
}


def local_method(name: str) -> LocalMethodRow:
    """Look up a local method.

    Args:
        name: As configs write it.

    Raises:
        UnknownNameError: No local method has this name.
    """
    if name not in LOCAL_METHODS:
        raise UnknownNameError("local method", name, LOCAL_METHODS)
    return LOCAL_METHODS[name]
