"""Verb: judge a candidate on the server's test set, whole and cut to each rank in use."""

from collections.abc import Iterable

import numpy as np
from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import open_store
from infra.run_store import read_adapter
from infra.whole_base import whole_models
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.resize import resize
from tasks.evaluation.metrics import evaluate
from tasks.rounds.records import Acceptance, RoundPlan, finite_only
from tasks.rounds.steps import Candidate
from tasks.training.adaptation import adapt, load_adapter
from tasks.training.models import BaseModel

CLIENT = "client_"
"""Prefix of figures that clients measured on their own validation shares."""


@task(
    name="evaluate-adapter",
    task_run_name="evaluate round {plan.round_index}, {candidate.group.model}",
    **task_options(),
)
def evaluate_adapter(plan: RoundPlan, candidate: Candidate, store_url: str, bench: Workbench) -> dict[str, float]:
    """Evaluate a candidate.

    Args:
        plan: The round's plan, for the ranks in use.
        candidate: What was aggregated.
        store_url: Where adapters are exchanged.
        bench: The run's test set and model.

    Returns:
        Metric -> value where that is a finite number; "<metric>_at_rank_<r>" for every rank in use below the largest;
        "client_<metric>" for what the clients measured, as the mean over their examples. Where clients keep a factor
        at home there is no global model to test, and their mean stands for the metric itself.
    """
    own = _client_means(candidate.group.accepted)
    metric = bench.config.metric
    if bench.aggregator.sends == "a":
        return own | finite_only({metric: own.get(f"{CLIENT}validation_{metric}", float("nan"))})
    store = open_store(store_url)
    adapter = read_adapter(store, plan.run_id, candidate.adapter)
    base = bench.base_with(whole_models(store, candidate.adapter))
    members = candidate.group.members
    chosen = bench.test_indices(members) if members else None
    scores = _scores(adapter, base, bench, chosen) | own
    if not bench.config.evaluation.prefix_ladder or not adapter.pairs:
        return scores
    # Where the base changes, a client's slots alone are no model: the cut is taken of the whole product.
    cut = bench.aggregator.share if bench.aggregator.downlink == "slice" else resize
    for rank in sorted({i.rank for i in plan.invitations if i.rank < bench.config.ranks.max_rank}):
        ranks = bench.module_ranks(rank)
        if any(slots > adapter.ranks[path] for path, slots in ranks.items()):  # clients of another cluster
            continue
        at_rank = _scores(cut(adapter, ranks), base, bench, chosen)
        if metric in at_rank:
            scores[f"{metric}_at_rank_{rank:03d}"] = at_rank[metric]
    return scores


def _scores(adapter: LoraAdapter, base: BaseModel, bench: Workbench, indices: np.ndarray | None) -> dict[str, float]:
    model = adapt(base, bench.lora, adapter.ranks, seed=0)
    load_adapter(model, adapter)
    size = bench.config.evaluation.batch_size
    return finite_only(evaluate(model, bench.test, batch_size=size, indices=indices, device=bench.device))


def _client_means(accepted: Iterable[Acceptance]) -> dict[str, float]:
    """Average the validation figures of the clients that report them, by their examples."""
    sums: dict[str, tuple[float, int]] = {}
    for acceptance in accepted:
        for name, value in acceptance.metrics.items():
            if "validation_" in name:
                total, examples = sums.get(name, (0.0, 0))
                sums[name] = total + value * acceptance.num_examples, examples + acceptance.num_examples
    return {f"{CLIENT}{name}": total / examples for name, (total, examples) in sorted(sums.items())}
