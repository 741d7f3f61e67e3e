"""The same work as a Rankweave inline run, through the flow: embedded Prefect, MLflow on SQLite, a folder as store.

Here the work is also exported for the other peers: the network, the initial adapter, who holds which digits and in
which order each client sees them are Rankweave's own.
"""

import time

import numpy as np

from configs.experiment import ExperimentConfig
from configs.loading import load_config
from configs.workbench import Workbench
from infra.embedded_prefect import embed_prefect
from infra.progress import Progress, watching
from infra.settings import read_settings
from tasks.rounds.seeds import derive_seed
from tests.bench.rounds import Rounds
from tests.bench.work import Work, WorkSpec

# At the preset's rate so wide a network jumps about, and rounding alone would send the peers different ways.
_STEADY = "training.optimizer.learning_rate=0.0003"

SIZES = {
    "tiny": ["model.hidden_sizes=[64]", "ranks.max_rank=8"],
    "3.5 MB": ["model.hidden_sizes=[1900, 1900, 1900, 1900]", "ranks.max_rank=64", _STEADY],
}
"""What a client sends: 7 kB, or 3.5 MB."""

_SAME_FOR_ALL = [
    "name=round-overhead",
    "data.partition.name=iid",
    "ranks.client_fractions=[1.0]",
    "cohort.quorum=10",
    "training.epochs=1",
    "aggregation.name=fedavg",
    "evaluation.prefix_ladder=false",
    "evaluation.diagnostics=false",
]


def bench_config(size: str, rounds: int, *overrides: str) -> ExperimentConfig:
    """Return the run: ten clients of equal rank, FedAvg, the server evaluates once a round."""
    return load_config("digits-staircase", [*_SAME_FOR_ALL, *SIZES[size], f"rounds={rounds}", *overrides])


def export_work(config: ExperimentConfig) -> Work:
    """Write down what a run does, for peers that do not have Rankweave."""
    bench = Workbench(config).load()
    adapter, weights = bench.initial_adapter(), bench.base.network.state_dict()
    layers = sorted(adapter.pairs)
    everything = [split.batch(np.arange(len(split))) for split in (bench.train, bench.test)]
    train, test = (
        (batch["pixel_values"].flatten(1).numpy(), batch["labels"].numpy().astype(np.int64)) for batch in everything
    )
    trained = ((adapter.pairs[x].a, adapter.pairs[x].b, adapter.dense[f"{x}.base_layer.bias"]) for x in layers)
    return Work(
        spec=WorkSpec(
            rounds=config.rounds,
            epochs=config.training.epochs,
            batch_size=config.training.batch_size,
            learning_rate=config.training.optimizer.learning_rate,
            evaluation_batch_size=config.evaluation.batch_size,
        ),
        train=train,
        test=test,
        clients=tuple(bench.client_indices(client)[0] for client in bench.clients),
        seeds=np.array(
            [
                [derive_seed(config.seed, "train", round_index, client) for client in bench.clients]
                for round_index in range(1, config.rounds + 1)
            ]
        ),
        base=tuple(weights[f"{layer}.weight"].numpy() for layer in layers),
        adapter=tuple(tensor.numpy() for layer in trained for tensor in layer),
    )


def run_rankweave(config: ExperimentConfig) -> Rounds:
    """Run a config through the flow, in a process whose Prefect is set up already."""
    from flows.federated_training import federated_training
    from infra.object_store import open_store
    from infra.run_store import read_records

    done = Rounds()

    def listen(event: Progress) -> None:
        if event.stage == "round":
            done.ended.append(time.monotonic())

    with watching(listen):
        summary = federated_training(config)
    for record in read_records(open_store(summary.store_url), summary.run_id)[1:]:
        # One client at a time (dispatch.inline_workers is 1), so the sum is the time some client was training.
        done.training_s.append(sum(accepted.training_s for accepted in record.collection.accepted))
        done.metrics.append(dict(record.metrics))
    return done


def run_embedded(config: ExperimentConfig) -> Rounds:
    """Run a config the way `rankweave run` does: with a Prefect server of its own."""
    embed_prefect(read_settings().home)
    return run_rankweave(config)
