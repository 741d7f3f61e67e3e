"""Whole models over the wire: full fine-tuning is plain FedAvg, and SA-FedLoRA's first stage hands over its base."""

import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

import flows.federated_round
from configs.workbench import Workbench
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import list_run_ids, read_adapter, read_adapter_files, read_records
from infra.settings import read_settings
from infra.whole_base import whole_folder, whole_models
from tasks.errors import ConfigError
from tasks.evaluation.metrics import evaluate
from tasks.rounds.records import RoundRecord
from tasks.train_client import train_client
from tasks.training.adaptation import adapt, load_adapter
from tests.flows.small import small_config

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_backend", "home")]

# One step over all examples of a client, so that their order does not matter.
PLAIN = (
    "aggregation.name=fedavg",
    "ranks.client_fractions=[1.0]",
    "training.batch_size=2000",
    "training.optimizer.name=sgd",
    "training.optimizer.momentum=0",
    "training.optimizer.learning_rate=0.2",
    "training.optimizer.max_grad_norm=0",
    "training.epochs=3",
)
WHOLE = (*PLAIN, "model.lora.whole_model=true")
STAGES = (
    *PLAIN,
    "rounds=4",
    "model.lora.bias=all",
    "training.local_methods=[proximal]",
    "ranks.schedulers=[sa_annealing]",
    "ranks.options=[{name: initiating, value: full}, {name: initiating_rounds, value: 2}, "
    "{name: heating_rank, value: 4}, {name: floor_rank, value: 2}, {name: cooling_rounds, value: 0}]",
)


class PowerCutError(Exception):
    """Stands for a process that is gone."""


def records_of(summary) -> list[RoundRecord]:
    return read_records(open_store(summary.store_url), summary.run_id)


def by_hand(bench: Workbench, rounds: int, epochs: int = 3, rate: float = 0.2) -> dict[str, torch.Tensor]:
    """FedAvg of all weights, as the paper has it: every client starts from the mean and takes full steps."""
    pixels = torch.tensor(np.asarray(bench.raw.train.images)).float().flatten(1)
    pixels = pixels / 255 if float(pixels.max()) > 1 else pixels
    labels = torch.tensor(np.asarray(bench.raw.train.labels))
    weights = [t.clone() for t in bench.base.network.state_dict().values()]  # weight, bias, weight, bias
    for _ in range(rounds):
        total, seen = [torch.zeros_like(w, dtype=torch.float64) for w in weights], 0
        for client in bench.clients:
            mine = torch.tensor(bench.client_indices(client)[0])
            own = [w.clone().requires_grad_() for w in weights]
            for _ in range(epochs):
                hidden = torch.relu(pixels[mine] @ own[0].T + own[1])
                loss = cross_entropy(hidden @ own[2].T + own[3], labels[mine])
                grads = torch.autograd.grad(loss, own)
                own = [(w - rate * g).detach().requires_grad_() for w, g in zip(own, grads, strict=True)]
            total = [t + len(mine) * w.detach().double() for t, w in zip(total, own, strict=True)]
            seen += len(mine)
        weights = [(t / seen).float() for t in total]
    return dict(zip(bench.base.network.state_dict(), weights, strict=True))


def test_full_fine_tuning_is_plain_fedavg_and_moves_what_the_ledger_says_it_would(tmp_path):
    config = small_config(*WHOLE)
    bench, summary = Workbench(config), federated_training(config)
    store, last = open_store(summary.store_url), records_of(summary)[-1]
    adapter = read_adapter(store, summary.run_id, last.models["global"])
    expected = by_hand(bench, rounds=2)
    assert not adapter.pairs
    assert adapter.dense.keys() == expected.keys()
    for name, tensor in expected.items():
        assert not torch.allclose(tensor, bench.base.network.state_dict()[name], atol=1e-3), "it learnt"
        torch.testing.assert_close(adapter.dense[name], tensor, rtol=0, atol=1e-5)

    for name, data in read_adapter_files(store, summary.run_id, last.models["global"]).items():
        (tmp_path / name).write_bytes(data)
    theirs = PeftModel.from_pretrained(Workbench(config).base.network, str(tmp_path)).eval()
    ours = adapt(bench.base, bench.lora, {}, seed=0).eval()
    load_adapter(ours, adapter)
    batch = bench.test.batch(np.arange(20))
    with torch.no_grad():
        assert torch.equal(ours(**batch).logits, theirs(**batch).logits)

    payload = [line.num_bytes for r in records_of(summary) for line in r.collection.ledger if line.what == "update"]
    envelope = [size - 4 * bench.base.num_parameters for size in payload]
    assert len(payload) == 10
    assert all(0 <= extra < 1000 for extra in envelope), "tensor names, nothing else"


def test_a_resumed_run_of_the_whole_model_ends_with_the_same_digest(monkeypatch):
    config = small_config(*WHOLE)
    whole = federated_training(config)
    assert _resumed(config, monkeypatch, "evaluate_adapter", round_index=2).adapter_sha256 == whole.adapter_sha256


def test_low_ranks_start_on_what_the_first_stage_made():
    config = small_config(*STAGES)
    summary = federated_training(config)
    store, records = open_store(summary.store_url), records_of(summary)
    bench = Workbench(config)
    whole = read_adapter(store, summary.run_id, records[2].models["global"])
    assert [bool(read_adapter(store, summary.run_id, r.models["global"]).pairs) for r in records] == [
        False, False, False, True, True,
    ]  # fmt: skip
    after = records[-1].models["global"]
    (merge,) = after.merges
    assert (merge.whole, merge.round_index, merge.sha256) == (True, 2, records[2].models["global"].sha256)
    base = bench.base_with(whole_models(store, after))
    assert all(torch.equal(base.network.state_dict()[name], tensor) for name, tensor in whole.dense.items())
    model = adapt(base, bench.lora, (adapter := read_adapter(store, summary.run_id, after)).ranks, seed=0)
    load_adapter(model, adapter)
    assert evaluate(model, bench.test, batch_size=256)["accuracy"] == pytest.approx(summary.metrics["accuracy"])
    assert [r.ranks["c00"] for r in records] == [4, 4, 4, 2, 2]

    merged = [sum(line.num_bytes for line in r.collection.ledger if line.what == "merge") for r in records[1:]]
    assert merged == [0, 0, 5 * merge.num_bytes, 0], "every client downloads it once"
    per_round = [sum(line.num_bytes for line in r.collection.ledger if line.what == "update") for r in records[1:]]
    assert per_round[0] == per_round[1] > per_round[2] > per_round[3]
    full = 4 * bench.base.num_parameters
    assert records[-1].totals["full_fine_tuning_bytes"] == 4 * 5 * 2 * full, "of both stages, in one bill"
    assert per_round[0] - 5 * full < 5000, "names of tensors"


@pytest.mark.parametrize("round_index", [1, 3])
def test_a_client_that_knows_only_the_config_trains_what_the_stage_trains(round_index):
    config = small_config(*STAGES, "rounds=3")
    summary = federated_training(config)
    (accepted,) = (a for a in records_of(summary)[round_index].collection.accepted if a.client_id == "c00")
    manifest = train_client.fn(
        summary.store_url,
        summary.run_id,
        round_index=round_index,
        client_id="c00",
        attempt=2,
        bench=Workbench(config),
        should_stop=lambda: None,
    )
    assert manifest.update_sha256 == accepted.update_sha256


def test_published_version_stands_on_the_first_stage_by_our_serving_and_by_hand(tmp_path):
    config = small_config(*STAGES)
    summary = federated_training(config)
    bench, store = Workbench(config), open_store(summary.store_url)
    mlflow.set_tracking_uri(read_settings().mlflow_uri)
    pixels = np.asarray(bench.raw.test.images).reshape(len(bench.raw.test), -1)
    served = mlflow.pyfunc.load_model("models:/small@champion").predict(pd.DataFrame(pixels))
    right = served["label"].astype(int).to_numpy() == bench.raw.test.labels
    assert float(np.mean(right)) == pytest.approx(summary.metrics["accuracy"], abs=1e-6)

    after = records_of(summary)[-1].models["global"]
    folders = {"whole": whole_folder(store, after), "adapter": read_adapter_files(store, summary.run_id, after)}
    for folder, files in folders.items():
        (tmp_path / folder).mkdir()
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(data)
    base = PeftModel.from_pretrained(bench.base.network, str(tmp_path / "whole")).merge_and_unload()
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        scores = model(**bench.test.batch(np.arange(len(bench.raw.test)))).logits.softmax(-1).amax(-1)
    np.testing.assert_allclose(served["score"], scores.numpy(), atol=1e-6)
    version = mlflow.MlflowClient().get_model_version("small", str(summary.model_version))
    assert "whole" in version.tags["rankweave.stands_on"]
    assert "rankweave.stands_on" not in mlflow.MlflowClient().get_model_version("small", "2").tags


@pytest.mark.parametrize(("step", "round_index"), [("publish_adapter", 2), ("collect_updates", 3), ("close_round", 3)])
def test_a_run_killed_around_the_switch_ends_with_the_same_bytes(monkeypatch, step, round_index):
    config = small_config(*STAGES)
    whole = federated_training(config)
    resumed = _resumed(config, monkeypatch, step, round_index)
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert [r.models["global"].merges[0].sha256 for r in records_of(resumed)[3:]] == [
        r.models["global"].merges[0].sha256 for r in records_of(whole)[3:]
    ]
    assert resumed.metrics == whole.metrics


def test_above_the_cap_on_bytes_the_first_stage_trains_low_ranks(monkeypatch):
    options = json.dumps([
        {"name": "initiating", "value": "full"},
        {"name": "initiating_rounds", "value": 1},
        {"name": "initiating_megabytes", "value": 0.004},
    ])  # fmt: skip
    summary = federated_training(small_config(*STAGES, "rounds=1", f"ranks.options={options}"))
    assert read_adapter(open_store(summary.store_url), summary.run_id, records_of(summary)[-1].models["global"]).pairs


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((*WHOLE, "aggregation.name=rbla"), "whole_model: there are no factors for rbla to weave; use fedavg"),
        ((*WHOLE, "ranks.schedulers=[sa_annealing]"), r"ranks do not move on the whole model; use .*\['fixed'\]"),
        ((*WHOLE, "aggregation.clusters.enabled=true"), "whole_model: clusters compare products"),
        ((*WHOLE, "aggregation.robust=geometric_median"), "whole_model: robust rules compare products"),
        ((*WHOLE, "training.local_methods=[rm_lora]"), "rm_lora needs factors; use lora or proximal"),
        (
            (*WHOLE, "aggregation.weighting=ranked", "training.validation_frac=0.2"),
            "ranked goes by the norm of products",
        ),
        ((*STAGES, "ranks.schedulers=[sa_annealing, energy]"), "initiating full: ranks do not move"),
        ((*STAGES, "training.local_methods=[ffa]"), "initiating full: ffa needs factors"),
    ],
)
def test_what_the_whole_model_cannot_honour_is_refused(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        small_config(*overrides)


def _resumed(config, monkeypatch, step: str, round_index: int):
    """Break a run at a step of a round, and resume it."""
    honest = getattr(flows.federated_round, step)

    def cut_off(*args, **kwargs):
        plan = next(a for a in args if hasattr(a, "round_index"))
        if plan.round_index == round_index:
            raise PowerCutError
        return honest(*args, **kwargs)

    known = set(list_run_ids(open_store(read_settings().store_url)))
    with monkeypatch.context() as power:
        power.setattr(flows.federated_round, step, cut_off)
        with pytest.raises(PowerCutError):
            federated_training(config)
    (run_id,) = set(list_run_ids(open_store(read_settings().store_url))) - known
    return federated_training(config.model_copy(update={"resume_run": run_id}))
