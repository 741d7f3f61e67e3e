"""Adapters that stay at home (FDLoRA): nothing of them is sent, they learn by their own schedule, and fusion pays."""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import mlflow
import pytest
import torch
from peft import PeftModel

import flows.cli
from configs.workbench import Workbench
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.private_state import PrivateState
from infra.run_store import commit_record, find_record, read_adapter, read_records
from infra.settings import read_settings
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.peft_files import read_adapter as read_folder
from tasks.adapters.products import dense_product
from tasks.local_work import PERSONAL, Effort, LocalWork
from tasks.rounds import keys
from tasks.rounds.records import FusionReport, RunSpec
from tests.flows.small import small_config
from tests.flows.staged import CLIENTS, bench_of, stage_round

VALIDATION = ("training.validation_frac=0.25", "model.lora.bias=none")
ON = (*VALIDATION, "training.local_methods=[fdlora]", "training.personal.budget=10")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prefect_backend):
    """Two rounds with personal adapters and their fusion; the environment stays that of the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWEAVE_HOME", str(tmp_path_factory.mktemp("personal") / "home"))
        for name in ("RANKWEAVE_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        config = small_config(*ON)
        yield config, federated_training(config)


def private_of(run_id, client) -> Any:
    return PrivateState(read_settings().home, run_id, client)


def report_of(summary, client) -> Any:
    return find_record(open_store(summary.store_url), keys.fusion(summary.run_id, client), FusionReport)


# --- what is sent ---------------------------------------------------------------------------------------------


def test_a_client_sends_the_same_bytes_with_and_without_a_personal_adapter(tmp_path, home):
    plain, personal = (stage_round(tmp_path / name, *over) for name, over in (("plain", VALIDATION), ("own", ON)))
    for staged in (plain, personal):
        staged.train("c01", "c02")
    names = [{found.key for found in staged.store.list("runs/")} for staged in (plain, personal)]
    assert names[0] == names[1]
    books = [[x for x in staged.look().close().ledger if x.what != "manifest"] for staged in (plain, personal)]
    assert books[0] == books[1]
    for client in ("c01", "c02"):
        one, other = plain.manifest(client), personal.manifest(client)
        assert one.update_sha256 == other.update_sha256
        added = set(other.metrics) - set(one.metrics)
        assert added
        assert all(name.startswith("personal_") for name in added), "figures are all that a manifest adds"


@pytest.mark.flow
def test_no_object_in_the_store_holds_a_tensor_of_a_personal_adapter(finished):
    _, summary = finished
    store = open_store(summary.store_url)
    objects = {found.key: store.get(found.key) for found in store.list("")}
    assert not [key for key in objects if "personal" in key or "private" in key]
    last = read_records(store, summary.run_id)[-1]
    shared = read_adapter(store, summary.run_id, last.models["global"]).pairs["layers.0"].a.contiguous().numpy()
    assert [key for key, found in objects.items() if shared.tobytes() in found], "what is sent is found this way"
    for client in CLIENTS:
        state = private_of(summary.run_id, client)
        for round_index in (1, 2):
            kept, adapter = state.latest(PERSONAL, round_index + 1)
            assert kept == round_index
            for pair in adapter.pairs.values():
                for factor in (pair.a, pair.b):
                    data = factor.contiguous().numpy().tobytes()
                    assert not [key for key, found in objects.items() if data in found]
        assert (state.root / "fused" / "adapter_model.safetensors").read_bytes() not in objects.values()


# --- how it learns --------------------------------------------------------------------------------------------


def marked(bench, rank, value):
    """An adapter that no training makes."""
    start = bench.aggregator.share(bench.initial_adapter(), bench.module_ranks(rank))
    return LoraAdapter({p: LoraPair(pair.a, torch.full_like(pair.b, value)) for p, pair in start.pairs.items()})


def same(one, other):
    return all(torch.equal(one.pairs[p].a, q.a) and torch.equal(one.pairs[p].b, q.b) for p, q in other.pairs.items())


@pytest.fixture
def starts(monkeypatch):
    """What every training started from."""
    found, load = [], sys.modules["tasks.local_work"].load_adapter

    def spy(model, adapter):
        found.append(adapter)
        load(model, adapter)

    monkeypatch.setattr("tasks.local_work.load_adapter", spy)
    return found


def train_rounds(bench, home, shares):
    for round_index, share in enumerate(shares, start=1):
        state = PrivateState(home, "run-1", "c01")
        LocalWork(bench, bench.base, state, round_index, "c01", lambda: None).train_personal(
            share, Effort(max(share.ranks.values()))
        )


@pytest.mark.parametrize(("every", "anew"), [(0, {1}), (1, {1, 2, 3, 4}), (2, {1, 2, 4}), (5, {1})])
def test_a_personal_adapter_starts_from_the_share_only_when_it_is_due(tmp_path, starts, every, anew):
    bench = bench_of(*ON, f"training.personal.refresh_every={every}", "training.max_steps=1")
    shares = [marked(bench, 4, 0.01 * value) for value in (1, 2, 3, 4)]
    train_rounds(bench, tmp_path, shares)
    state: Any = PrivateState(tmp_path, "run-1", "c01")
    assert {t for t, share in enumerate(shares, start=1) if same(starts[t - 1], share)} == anew
    for round_index in {3, 4} - anew:  # earlier ones are not kept that long
        assert same(starts[round_index - 1], state.latest(PERSONAL, round_index)[1])


def test_a_personal_adapter_keeps_what_it_learnt_when_its_rank_grows(tmp_path, starts):
    bench = bench_of(*ON, "training.personal.refresh_every=0", "training.max_steps=1")
    train_rounds(bench, tmp_path, [marked(bench, 2, 0.01), marked(bench, 4, 0.02)])
    state: Any = PrivateState(tmp_path, "run-1", "c01")
    _, first = state.latest(PERSONAL, 2)
    assert starts[1].ranks == bench.module_ranks(4)
    for path, pair in first.pairs.items():
        torch.testing.assert_close(dense_product(starts[1].pairs[path]), dense_product(pair), rtol=1e-4, atol=1e-6)


# --- fusion ---------------------------------------------------------------------------------------------------


@pytest.mark.flow
def test_a_fused_adapter_is_no_worse_on_validation_than_either_side(finished):
    config, summary = finished
    for client in CLIENTS:
        report = report_of(summary, client)
        sides = [report.metrics[f"{side}_loss"] for side in ("personal", "shared")]
        assert report.metrics["fused_loss"] <= min(sides) + 1e-9
        assert (report.form, report.evaluations) == ("cat", config.training.personal.budget)
        kept = json.loads((private_of(summary.run_id, client).root / "fused" / "base.json").read_text(encoding="utf8"))
        assert kept["kind"] == "mlp"


@pytest.mark.flow
def test_the_fused_folder_loads_with_peft_and_is_the_weighted_sum_of_both_products(finished):
    config, summary = finished
    bench = Workbench(config)
    last = read_records(open_store(summary.store_url), summary.run_id)[-1]
    whole = read_adapter(open_store(summary.store_url), summary.run_id, last.models["global"])
    for client in CLIENTS:
        state, report = private_of(summary.run_id, client), report_of(summary, client)
        personal = state.latest(PERSONAL, 3)[1]
        by_hand: Any = Workbench(config).base.network.eval()
        for path, own in personal.pairs.items():
            ours = whole.pairs[path].b[:, : own.rank] @ whole.pairs[path].a[: own.rank]
            delta = report.personal_weight * (own.b @ own.a) + report.shared_weight * ours
            by_hand.get_submodule(path).weight.data += delta
        loaded = PeftModel.from_pretrained(Workbench(config).base.network, state.root / "fused").eval()
        rows = bench.client_indices(client)[1]
        batch = bench.train.batch(rows)
        with torch.no_grad():
            wanted, got = by_hand(batch["pixel_values"]).logits, loaded(pixel_values=batch["pixel_values"]).logits
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        loss = torch.nn.functional.cross_entropy(got, batch["labels"])
        assert report.metrics["fused_loss"] == pytest.approx(float(loss), abs=1e-4)
        assert read_folder(state.root / "fused").adapter.ranks == {
            p: 2 * pair.rank for p, pair in personal.pairs.items()
        }


@pytest.mark.flow
def test_mlflow_has_every_client_s_fusion_and_the_means(finished):
    _, summary = finished
    client: Any = mlflow.MlflowClient(read_settings().mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`rankweave.run_id` = '{summary.run_id}'")
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "fusion.json")).read_text(encoding="utf8"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["client"] for row in rows] == CLIENTS
    reports = [report_of(summary, name) for name in CLIENTS]
    assert [row["fused_loss"] for row in rows] == pytest.approx([r.metrics["fused_loss"] for r in reports], abs=1e-4)
    wanted = fmean(report.metrics["fused_accuracy"] for report in reports)
    assert run.data.metrics["client_fused_accuracy"] == pytest.approx(wanted)


# --- the command line -----------------------------------------------------------------------------------------


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["rankweave", *words])
    with pytest.raises(SystemExit) as ended:
        flows.cli.main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.mark.flow
def test_fuse_prints_a_line_per_client(monkeypatch, capsys, finished):
    _, summary = finished
    code, out, _ = call(monkeypatch, capsys, "fuse", summary.run_id)
    lines = out.strip().splitlines()
    assert (code, [line.split(":")[0] for line in lines]) == (0, CLIENTS)
    accuracy = report_of(summary, "c03").metrics["fused_accuracy"]
    assert f"fused {accuracy:.4f}; weights" in lines[3]
    code, out, _ = call(monkeypatch, capsys, "fuse", summary.run_id, "--client", "c02", "--json")
    assert (code, list(json.loads(out)["clients"])) == (0, ["c02"])


@pytest.mark.flow
def test_fuse_makes_anew_what_this_machine_lost(monkeypatch, capsys, finished):
    _, summary = finished
    before, folder = report_of(summary, "c04"), private_of(summary.run_id, "c04").root / "fused"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    open_store(summary.store_url).delete(keys.fusion(summary.run_id, "c04"))
    for path in folder.iterdir():
        path.unlink()
    assert call(monkeypatch, capsys, "fuse", summary.run_id, "--client", "c04")[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert report_of(summary, "c04") == before


@pytest.mark.parametrize(
    ("run_id", "message"),
    [
        ("small-none", "run 'small-none': is not in"),
        (
            "small-plain",
            "run small-plain: trained no personal adapters; add fdlora to training.local_methods in a new run",
        ),
        ("small-away", "run small-away: left no personal adapter on this machine; fuse where the clients trained"),
    ],
)
def test_fuse_ends_in_one_sentence_where_there_is_nothing_to_fuse(monkeypatch, capsys, home, run_id, message):
    store = open_store(read_settings().store_url)
    for name, overrides in (("small-plain", VALIDATION), ("small-away", ON)):
        bench = bench_of(*overrides)
        spec = RunSpec(
            run_id=name,
            config=bench.frozen_config(),
            base_digest=bench.base.digest,
            code_version="1",
            created_at="2026-01-01T00:00:00+00:00",
        )
        commit_record(store, keys.run_spec(name), spec)
    code, out, err = call(monkeypatch, capsys, "fuse", run_id)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
