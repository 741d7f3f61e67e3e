"""Verb: judge a candidate on the server's test set, whole and cut to each rank in use."""

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import open_store
from infra.run_store import WEIGHTS
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import decode_adapter
from tasks.aggregators.table import aggregator
from tasks.evaluation.metrics import evaluate
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import RoundPlan, check_digest, finite_only
from tasks.rounds.steps import Candidate
from tasks.training.adaptation import adapt, load_adapter


@task(name="evaluate-adapter", task_run_name="evaluate round {plan.round_index}", **task_options())
def evaluate_adapter(plan: RoundPlan, candidate: Candidate, store_url: str, bench: Workbench) -> dict[str, float]:
    """Evaluate a candidate.

    Args:
        plan: The round's plan, for the ranks in use.
        candidate: What was aggregated.
        store_url: Where adapters are exchanged.
        bench: The run's test set and model.

    Returns:
        Metric -> value where that is a finite number; "<metric>_at_rank_<r>" for every rank in use below the largest.
    """
    key = RoundKeys(plan.run_id, candidate.round_index).adapter(WEIGHTS)
    adapter = decode_adapter(check_digest(open_store(store_url).get(key), candidate.sha256, key))
    scores = _scores(adapter, bench)
    if not bench.config.evaluation.prefix_ladder:
        return scores
    cut, metric = aggregator(bench.config.aggregation.name).share, bench.config.metric
    for rank in sorted({i.rank for i in plan.invitations if i.rank < bench.config.ranks.max_rank}):
        at_rank = _scores(cut(adapter, bench.module_ranks(rank)), bench)
        if metric in at_rank:
            scores[f"{metric}_at_rank_{rank:03d}"] = at_rank[metric]
    return scores


def _scores(adapter: LoraAdapter, bench: Workbench) -> dict[str, float]:
    model = adapt(bench.base, bench.lora, adapter.ranks, seed=0)
    load_adapter(model, adapter)
    size = bench.config.evaluation.batch_size
    return finite_only(evaluate(model, bench.test, batch_size=size, device=bench.device))
