"""Verb: find out which clients work on the same task, and fix the groups before anything is aggregated."""

from collections import Counter
from collections.abc import Sequence

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.object_store import ObjectStore, open_store
from infra.round_reader import RoundReader
from infra.run_store import commit_record, find_record
from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.settling import settle
from tasks.aggregators.similarity import SimilarityMemory, change, gram
from tasks.rounds.keys import RoundKeys
from tasks.rounds.records import Acceptance, Clustering, Collection, RoundPlan, RoundRecord
from tasks.rounds.steps import Group, Grouping


@task(name="group-updates", task_run_name="group round {plan.round_index}", **task_options())
def group_updates(
    plan: RoundPlan, collection: Collection, previous: RoundRecord, store_url: str, bench: Workbench
) -> Grouping:
    """Cluster a round's clients by what their training added, or adopt the clusters an earlier try fixed.

    Args:
        plan: The round's plan.
        collection: Which updates count.
        previous: The record of the round before, for the clusters so far.
        store_url: Where adapters are exchanged.
        bench: The run's method.

    Returns:
        One group for each cluster that sent something, and the label of every client seen so far.
    """
    store = open_store(store_url)
    key = RoundKeys(plan.run_id, plan.round_index).clustering
    clustering = find_record(store, key, Clustering)
    if clustering is None:
        clustering = commit_record(store, key, _clustered(store, plan, collection, previous, bench))
    labels = clustering.labels
    groups = [
        Group(
            model,
            parent,
            accepted=tuple(a for a in collection.accepted if labels[a.client_id] == model),
            members=tuple(sorted(client for client, label in labels.items() if label == model)),
        )
        for model, parent in sorted(clustering.parents.items())
    ]
    return Grouping(tuple(groups), labels)


def _clustered(
    store: ObjectStore, plan: RoundPlan, collection: Collection, previous: RoundRecord, bench: Workbench
) -> Clustering:
    config = bench.config.aggregation.clusters
    clients = [acceptance.client_id for acceptance in collection.accepted]
    reader = RoundReader(store, plan, bench.exchange(plan))
    products = gram([_change(reader, acceptance) for acceptance in collection.accepted])
    memory = _memory(store, plan).updated(clients, products, config.decay)
    found = settle(
        clients,
        memory.matrix(clients),
        num_clusters=config.num_clusters,
        max_clusters=config.max_clusters,
        previous=previous.labels,
    )
    return Clustering(
        labels={**previous.labels, **found.labels},
        parents={name: _parent(members, previous) for name, members in found.members.items()},
        similarities=tuple(memory.to_pairs()),
        silhouette=found.silhouette,
    )


def _memory(store: ObjectStore, plan: RoundPlan) -> SimilarityMemory:
    """Return what the last round that was clustered knew; failed rounds cluster nothing."""
    for round_index in range(plan.round_index - 1, 0, -1):
        before = find_record(store, RoundKeys(plan.run_id, round_index).clustering, Clustering)
        if before is not None:
            return SimilarityMemory.from_pairs(before.similarities)
    return SimilarityMemory()


def _parent(members: Sequence[str], previous: RoundRecord) -> str:
    """Return the model that most members trained so far; of equals the first by name."""
    counts = Counter(previous.model_of(client) for client in members)
    return min(counts, key=lambda name: (-counts[name], name))


def _change(reader: RoundReader, acceptance: Acceptance) -> LoraAdapter:
    """Return what a client's training added: whole adapters of later rounds are alike by their common start."""
    return change(reader.update(acceptance), reader.start_of(acceptance))
