"""Verb: join a client's personal adapter with the final global one, on the client's own machine."""

import json
from pathlib import Path

from prefect import task

from configs.workbench import Workbench
from infra.engine import task_options
from infra.metered_store import Meter, MeteredStore
from infra.object_store import open_store
from infra.private_state import PrivateState
from infra.run_store import commit_record, read_adapter, read_records
from infra.settings import read_settings
from tasks.adapters.fusion import fuse, search_fusion
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import folder_files
from tasks.adapters.resize import resize
from tasks.errors import RunNotFoundError
from tasks.evaluation.metrics import evaluate
from tasks.local_work import PERSONAL
from tasks.rounds import keys
from tasks.rounds.records import FusionReport, finite_only
from tasks.training.adaptation import adapt, load_adapter


@task(name="fuse-adapters", task_run_name="fuse {client_id}", **task_options())
def fuse_adapters(store_url: str, run_id: str, *, client_id: str, bench: Workbench) -> FusionReport:
    """Search the weights of a fusion on the client's validation share, and keep the fused adapter at home.

    Only the report leaves the client: weights, losses and figures. The adapter lies as a PEFT folder in
    `private/<run>/<client>/fused` under the client's `RANKWEAVE_HOME`.

    Args:
        store_url: Where the global adapter lies.
        run_id: The finished run.
        client_id: Who fuses.
        bench: The client's data and base model.

    Returns:
        The report under the run's key; that of an earlier try, if there is one.

    Raises:
        RunNotFoundError: The store has no finished round of this run, or this machine no personal adapter.
    """
    meter = Meter()
    store = MeteredStore(open_store(store_url), meter)
    records = read_records(store, run_id)
    private = PrivateState(read_settings().home, run_id, client_id)
    kept = private.latest(PERSONAL, len(records)) if records else None
    if kept is None:
        raise RunNotFoundError(
            f"client {client_id}, run {run_id}",
            "has no personal adapter on this machine",
            remedy="fuse where the client trained, in a run whose training.local_methods name fdlora",
        )
    last, personal = records[-1], kept[1]
    whole = read_adapter(store, run_id, last.models[last.model_of(client_id)])
    # The client may have trained last at a higher rank than the global adapter was cut to since.
    roomy = resize(whole, {path: max(rank, whole.ranks[path]) for path, rank in personal.ranks.items()})
    shared = bench.aggregator.share(roomy, personal.ranks)
    config = bench.config.training.personal
    found = search_fusion(
        personal, shared, lambda adapter: _loss(adapter, client_id, bench), form=config.fusion, budget=config.budget
    )
    fused = fuse(personal, shared, found.weights, form=config.fusion)
    _keep(private.root / "fused", fused, bench)
    sides = {"personal": personal, "shared": shared, "fused": fused}
    scores = {
        f"{side}_{name}": value
        for side, adapter in sides.items()
        for name, value in _scores(adapter, client_id, bench).items()
    }
    report = FusionReport(
        run_id=run_id,
        client_id=client_id,
        form=config.fusion,
        personal_weight=found.weights[0],
        shared_weight=found.weights[1],
        evaluations=found.evaluations,
        metrics=finite_only(scores),
        downloaded=meter.downloaded,
    )
    return commit_record(store, keys.fusion(run_id, client_id), report)


def _loss(adapter: LoraAdapter, client_id: str, bench: Workbench) -> float:
    return _scores(adapter, client_id, bench)["loss"]


def _scores(adapter: LoraAdapter, client_id: str, bench: Workbench) -> dict[str, float]:
    model = adapt(bench.base, bench.lora, adapter.ranks, seed=0)
    load_adapter(model, adapter)
    validation = bench.client_indices(client_id)[1]
    size = bench.config.evaluation.batch_size
    return evaluate(model, bench.train, batch_size=size, indices=validation, device=bench.device)


def _keep(folder: Path, adapter: LoraAdapter, bench: Workbench) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in folder_files(adapter, bench.peft_config(adapter)).items():
        (folder / name).write_bytes(data)
    (folder / "base.json").write_text(json.dumps(bench.base_spec_json(), sort_keys=True), encoding="utf8")
