"""The table of aggregators: forms, validation, the command line and the law suite all read it."""

from dataclasses import replace

from tasks.adapters.core import leading_cores
from tasks.adapters.lora import prefix
from tasks.aggregators.delta_svd import delta_svd
from tasks.aggregators.fed_sb import fed_sb
from tasks.aggregators.fedavg import fedavg
from tasks.aggregators.fedex import fedex
from tasks.aggregators.fedsa import fedsa
from tasks.aggregators.ffa import ffa
from tasks.aggregators.flexlora import flexlora
from tasks.aggregators.flora_stack import flora_stack, round_stack
from tasks.aggregators.hetlora import PER_MODULE, hetlora
from tasks.aggregators.history import appended
from tasks.aggregators.options import BANK_FACTOR, COVERAGE_EXPONENT, ENERGY, RECOMPRESS_RANK
from tasks.aggregators.promises import Aggregator
from tasks.aggregators.raflora import raflora, raflora_canonical
from tasks.aggregators.rbla import rbla
from tasks.aggregators.shares import fresh_share, living_prefix
from tasks.aggregators.zero_pad import zero_pad
from tasks.errors import UnknownNameError

AGGREGATORS: dict[str, Aggregator] = {
    "fedavg": Aggregator(
        name="fedavg",
        title="FedAvg of factors",
        paper="https://arxiv.org/abs/1602.05629",
        start=fedavg,
        share=prefix,
        mixed_ranks=False,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=True,
        downlink="slice",
        noisable=True,
    ),
    "rbla": Aggregator(
        name="rbla",
        title="RBLA: every slot over its owners",
        paper="https://arxiv.org/abs/2408.08699",
        start=rbla,
        share=prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=True,
        downlink="slice",
    ),
    "zero_pad": Aggregator(
        name="zero_pad",
        title="Zero-padding",
        paper="https://arxiv.org/abs/2401.06432",
        start=zero_pad,
        share=prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=False,
        downlink="slice",
        noisable=True,
        options=(replace(COVERAGE_EXPONENT, default=0.0),),
    ),
    "hetlora": Aggregator(
        name="hetlora",
        title="HetLoRA: zero-padding weighted by norms",
        paper="https://arxiv.org/abs/2401.06432",
        start=hetlora,
        share=prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="updates",
        noop_fixed_point=False,
        downlink="slice",
        weighs_by_examples=False,
        options=(PER_MODULE,),
    ),
    "ffa": Aggregator(
        name="ffa",
        title="FFA: one frozen a, mean of b",
        paper="https://arxiv.org/abs/2403.12313",
        start=ffa,
        share=prefix,
        mixed_ranks=True,
        exact_product=True,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=False,
        downlink="slice",
        noisable=True,
        sends="b",
    ),
    "fedsa": Aggregator(
        name="fedsa",
        title="FedSA: mean of a, b stays at home",
        paper="https://arxiv.org/abs/2410.01463",
        start=fedsa,
        share=prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=True,
        downlink="slice",
        sends="a",
    ),
    "fed_sb": Aggregator(
        name="fed_sb",
        title="Fed-SB: frozen a and b, mean of cores",
        paper="https://arxiv.org/abs/2502.15436",
        start=fed_sb,
        share=leading_cores,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="sums",
        noop_fixed_point=True,
        downlink="slice",
        averages="products",
        sends="core",
    ),
    "flexlora": Aggregator(
        name="flexlora",
        title="FlexLoRA: mean of products, cut by SVD",
        paper="https://arxiv.org/abs/2402.11505",
        start=flexlora,
        share=living_prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=True,
        needs="updates",
        noop_fixed_point=False,
        downlink="slice",
        averages="products",
        options=(ENERGY,),
    ),
    "raflora": Aggregator(
        name="raflora",
        title="raFLoRA: products, every slot over its owners",
        paper="https://arxiv.org/abs/2602.13486",
        start=raflora,
        share=living_prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=False,
        needs="updates",
        noop_fixed_point=True,
        downlink="slice",
        averages="products",
        options=(COVERAGE_EXPONENT, ENERGY),
    ),
    "raflora_canonical": Aggregator(
        name="raflora_canonical",
        title="raFLoRA on canonical factors",
        paper="https://arxiv.org/abs/2602.13486",
        start=raflora_canonical,
        share=living_prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=True,
        needs="updates",
        noop_fixed_point=True,
        downlink="slice",
        averages="products",
        options=(COVERAGE_EXPONENT, ENERGY),
    ),
    "delta_svd": Aggregator(
        name="delta_svd",
        title="Delta-SVD: changes added to a larger bank",
        paper="https://arxiv.org/abs/2505.18494",
        start=delta_svd,
        share=living_prefix,
        mixed_ranks=True,
        exact_product=False,
        gauge_invariant=True,
        needs="updates",
        noop_fixed_point=True,
        downlink="slice",
        averages="products",
        rank="bank",
        options=(BANK_FACTOR, ENERGY),
    ),
    "flora_stack": Aggregator(
        name="flora_stack",
        title="FLoRA: stack, merge, start anew",
        paper="https://arxiv.org/abs/2409.05976",
        start=flora_stack,
        share=fresh_share,
        mixed_ranks=True,
        exact_product=True,
        gauge_invariant=True,
        needs="updates",
        noop_fixed_point=True,
        downlink="stack",
        averages="products",
        rank="sum",
        options=(RECOMPRESS_RANK,),
        merges=round_stack,
    ),
    "fedex": Aggregator(
        name="fedex",
        title="FedEx: mean of factors and its residual",
        paper="https://arxiv.org/abs/2410.09432",
        start=fedex,
        share=prefix,
        mixed_ranks=False,
        exact_product=True,
        gauge_invariant=False,
        needs="updates",
        noop_fixed_point=True,
        downlink="residual",
        averages="products",
        rank="sum",
        merges=appended,
    ),
}


def aggregator(name: str) -> Aggregator:
    """Look up an aggregator.

    Args:
        name: As configs write it.

    Raises:
        UnknownNameError: No aggregator has this name.
    """
    if name not in AGGREGATORS:
        raise UnknownNameError("aggregator", name, AGGREGATORS)
    return AGGREGATORS[name]
