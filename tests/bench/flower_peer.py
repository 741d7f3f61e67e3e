"""The same work in Flower's simulation engine: a ServerApp and a ClientApp on Ray, two CPUs, so two clients at once.

Runs in `.venv-flower` only. Written as lean as Flower allows: no federated evaluation, and the data and the model stay
in each Ray worker between messages, so that what is measured is Flower.
"""

import os
import time
from functools import cache
from pathlib import Path

# Read by Flower when it is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from flwr.app import (  # pyright: ignore[reportMissingImports]  # in its own environment, never beside Rankweave
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]  # as above
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]  # as above
from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]  # as above

from tests.bench.rounds import Rounds
from tests.bench.work import LoraMlp, Work, covered_s, evaluate, load_work, train

CPUS = 2
client_app = ClientApp()


@cache
def _in_this_worker(path: str) -> tuple[Work, LoraMlp]:
    work = load_work(Path(path))
    return work, LoraMlp(work)


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    config = message.content["config"]
    work, model = _in_this_worker(config["work"])
    client = int(context.node_config["partition-id"])
    model.load(message.content["arrays"].to_numpy_ndarrays())
    started, ended = train(model, work, round_index=config["server-round"], client=client)
    metrics = {"num-examples": len(work.clients[client]), "started": started, "ended": ended}
    content = {"arrays": ArrayRecord(numpy_ndarrays=model.extract()), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)


def run_flower(path: Path) -> Rounds:
    """Run a work that lies in a file."""
    from flwr.simulation import run_simulation  # pyright: ignore[reportMissingImports]  # as above

    work, done, server_app = load_work(path), Rounds(), ServerApp()

    def note_training(replies: list[RecordDict], _weight: str) -> MetricRecord:
        metrics = [reply["metrics"] for reply in replies]
        done.training_s.append(covered_s([(m["started"], m["ended"]) for m in metrics]))
        return MetricRecord()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        model, everyone = LoraMlp(work), len(work.clients)

        def judge(round_index: int, arrays: ArrayRecord) -> MetricRecord | None:
            if round_index == 0:
                return None
            model.load(arrays.to_numpy_ndarrays())
            done.metrics.append(evaluate(model, work))
            done.ended.append(time.monotonic())
            return MetricRecord(done.metrics[-1])

        FedAvg(
            fraction_evaluate=0.0,
            min_train_nodes=everyone,
            min_available_nodes=everyone,
            train_metrics_aggr_fn=note_training,
        ).start(
            grid,
            ArrayRecord(numpy_ndarrays=list(work.adapter)),
            num_rounds=work.spec.rounds,
            train_config=ConfigRecord({"work": str(path)}),
            evaluate_fn=judge,
        )

    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(work.clients),
        backend_config={"init_args": {"num_cpus": CPUS}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return done
