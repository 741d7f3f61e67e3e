"""Methods whose clients add every round to their base: who holds which base, who fetches what, who pays for it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import flows.federated_round
from configs.workbench import Workbench
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import list_run_ids, read_records
from infra.settings import read_settings
from tasks.adapters.blob import from_blob
from tasks.adapters.products import dense_product
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL, RoundKeys
from tasks.rounds.ledger import LedgerLine
from tasks.rounds.records import ClientFailure, encode
from tasks.training.models import state_digest
from tests.flows.small import small_config
from tests.flows.staged import RUN_ID, Staged
from tests.flows.told import (
    COHORT,
    FEDEX,
    FLORA,
    Story,
    before,
    candidate_of,
    logits,
    mean_product,
    merges_before,
    payload,
    settled,
    told,
)


class PowerCutError(Exception):
    """Stands for a process that is gone."""


@pytest.fixture(scope="module")
def flora(tmp_path_factory) -> Story:
    """c02 is away in round 2."""
    return told(tmp_path_factory.mktemp("flora"), FLORA, COHORT, COHORT[:2], COHORT)


@pytest.fixture(scope="module")
def fedex(tmp_path_factory) -> Story:
    return told(tmp_path_factory.mktemp("fedex"), FEDEX, COHORT, COHORT, COHORT, [])


def merge_sizes(staged: Staged) -> dict[int, int]:
    """Round -> size of its merge as it lies in the store [bytes]."""
    found = staged.store.list(f"runs/{RUN_ID}/rounds/")
    return {int(f.key.split("/")[3]): f.size for f in found if f.key.endswith(f"/{GLOBAL}/{keys.MERGE}")}


def merge_lines(ledger: tuple[LedgerLine, ...]) -> dict[tuple[str, int], int]:
    lines = [line for line in ledger if line.what == "merge"]
    assert {line.direction for line in lines} <= {"downlink"}
    assert len({(line.client_id, line.attempt) for line in lines}) == len(lines), "one line an attempt"
    return {(line.client_id, line.attempt): line.num_bytes for line in lines}


# --- FLoRA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("round_index", "client"), [(2, "c00"), (2, "c01"), (3, "c00"), (3, "c02")])
def test_flora_client_starts_from_the_model_that_the_server_judged(flora, round_index, client):
    staged = flora.rounds[round_index]
    start, bench = staged.share(client), staged.bench
    assert not any(pair.b.any() for pair in start.pairs.values()), "its own pairs start anew"
    theirs = logits(bench, flora.bases[round_index, client], start)
    plain = logits(bench, bench.base, start)
    assert not torch.allclose(theirs, plain, rtol=1e-2, atol=1e-2), "the merges matter"
    torch.testing.assert_close(theirs, logits(bench, bench.base, before(staged)), rtol=1e-4, atol=1e-4)


def test_flora_client_that_was_away_fetches_what_it_missed_and_holds_the_same_base(flora):
    fetched = {(t, c): flora.rounds[t].manifest(c).fetched for t, c in flora.bases}
    assert fetched == {
        **{(1, client): () for client in COHORT},
        **{(2, client): (1,) for client in COHORT[:2]},
        **{(3, "c00"): (2,), (3, "c01"): (2,), (3, "c02"): (1, 2)},
    }
    digests = {client: state_digest(flora.bases[3, client].network) for client in COHORT}
    assert len(set(digests.values())) == 1
    assert digests["c00"] != state_digest(flora.bases[2, "c00"].network)


def test_flora_round_adds_the_exact_mean_of_products(flora):
    first, second = flora.rounds[1], merges_before(flora.rounds[2])[1]
    for path, pair in second.pairs.items():
        np.testing.assert_allclose(dense_product(pair).numpy(), mean_product(first, path), atol=1e-6)


def test_flora_shares_hold_no_factor_and_clients_draw_their_own(flora):
    staged = flora.rounds[2]
    for share in staged.plan.shares.values():
        tensors = from_blob(staged.store.get(share.key), share.key)
        assert sorted(tensors) == [f"base_model.model.{name}" for name in before(staged).dense]
    drawn = [tuple(flora.starts[t, "c00"].pairs["layers.0"].a.flatten().tolist()) for t in (1, 2, 3)]
    assert len(set(drawn)) == 3, "anew in every round"


def test_flora_merges_are_booked_at_what_each_client_fetched(flora):
    sizes = merge_sizes(flora.rounds[3])
    assert sorted(sizes) == [1, 2]
    booked = [merge_lines(flora.rounds[t].look().close().ledger) for t in (1, 2, 3)]
    assert booked[0] == {}
    assert booked[1] == {("c00", 1): sizes[1], ("c01", 1): sizes[1]}
    assert booked[2] == {("c00", 1): sizes[2], ("c01", 1): sizes[2], ("c02", 1): sizes[1] + sizes[2]}


@pytest.mark.parametrize("name", [keys.UPDATE, keys.FAILURE, "manifest that is none"])
def test_flora_attempt_that_left_no_word_is_booked_all_merges(flora, tmp_path, name):
    staged = flora.copy(3, tmp_path)
    key = staged.key("c00", keys.MANIFEST)
    staged.store.delete(key)
    if name == keys.FAILURE:
        staged.store.delete(staged.key("c00", keys.UPDATE))
        failure = ClientFailure(client_id="c00", attempt=1, reason="DataError", detail="its disk is gone")
        staged.store.put(staged.key("c00", name), encode(failure))
    elif name != keys.UPDATE:
        staged.store.put(key, b"{}")
    booked = merge_lines(staged.look().close().ledger)
    assert booked["c00", 1] == sum(merge_sizes(staged).values())


def test_flora_merges_are_not_booked_again_when_the_manifest_comes_late(flora, tmp_path):
    staged = flora.copy(3, tmp_path)
    key = staged.key("c00", keys.MANIFEST)
    manifest = staged.store.get(key)
    staged.store.delete(key)
    following = settled(staged)
    staged.store.put(key, manifest)
    collection = following.look().close()
    assert [(r.client_id, r.reason) for r in collection.refused] == [("c00", "late")]
    assert [line.what for line in collection.ledger] == ["manifest"]


def test_flora_recompression_makes_the_merge_smaller(flora, tmp_path):
    option = "aggregation.options=[{name: recompress_rank, value: 1}]"
    staged = replace(flora.copy(1, tmp_path), bench=Workbench(small_config(*FLORA, option)))
    for found in staged.store.list(f"{staged.keys.root}/{GLOBAL}/"):
        staged.store.delete(found.key)
    (merge,) = candidate_of(staged).adapter.merges
    assert merges_before(flora.rounds[2])[1].ranks == dict.fromkeys(staged.bench.module_shapes, 2 + 4 + 8)
    sizes = staged.bench.module_shapes.values()
    assert payload(staged.store.get(merge.key)) == 4 * sum(map(sum, sizes)), "one slot a module"


def test_flora_runs_without_any_tensor_trained_whole(tmp_path):
    story = told(tmp_path, (*FLORA, "model.lora.bias=none"), COHORT[:2], COHORT[:2])
    assert all(not from_blob(story.rounds[2].store.get(s.key), s.key) for s in story.rounds[2].plan.shares.values())
    assert sorted(story.rounds[2].look().accepted) == COHORT[:2]


# --- FedEx ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_index", [2, 3])
@pytest.mark.parametrize("client", COHORT)
def test_fedex_client_starts_from_the_model_that_the_server_judged(fedex, round_index, client):
    staged = fedex.rounds[round_index]
    start, bench = staged.share(client), staged.bench
    theirs = logits(bench, fedex.bases[round_index, client], start)
    torch.testing.assert_close(theirs, logits(bench, bench.base, before(staged)), rtol=1e-4, atol=1e-4)
    assert not torch.equal(theirs, logits(bench, bench.base, start)), "the residual matters"


@pytest.mark.parametrize("round_index", [1, 2, 3])
def test_fedex_slice_and_residual_are_the_exact_mean_of_products(fedex, round_index):
    trained, after = fedex.rounds[round_index], fedex.rounds[round_index + 1]
    residual = merges_before(after)[round_index]
    for path, pair in after.share("c00").pairs.items():
        got = dense_product(pair) + dense_product(residual.pairs[path])
        np.testing.assert_allclose(got.numpy(), mean_product(trained, path), atol=1e-6)
        assert not np.allclose(dense_product(pair).numpy(), mean_product(trained, path), atol=1e-4)


def test_fedex_clients_train_on_what_the_server_sent(fedex):
    assert all(any(p.b.any() for p in fedex.starts[2, client].pairs.values()) for client in COHORT)
    assert {t: fedex.rounds[t].manifest("c01").fetched for t in (1, 2, 3)} == {1: (), 2: (1,), 3: (2,)}


# --- whole runs -----------------------------------------------------------------------------------------------


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
@pytest.mark.parametrize("overrides", [FLORA, FEDEX], ids=["flora", "fedex"])
def test_everyone_pays_for_the_merge_of_the_round_before(overrides):
    summary = federated_training(small_config(*overrides, "rounds=3"))
    store = open_store(summary.store_url)
    records = read_records(store, summary.run_id)
    sizes = [store.size(RoundKeys(summary.run_id, t).adapter(keys.MERGE)) or 0 for t in range(4)]
    assert sizes[0] == 0
    assert all(sizes[1:])
    booked = [sum(merge_lines(record.collection.ledger).values()) for record in records]
    assert booked == [0, 0, 3 * sizes[1], 3 * sizes[2]]
    lines = [line for record in records for line in record.collection.ledger]
    assert sum(line.num_bytes for line in lines) == summary.downlink_bytes + summary.uplink_bytes


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_run_that_lost_its_clients_downloads_ends_with_the_same_adapter_and_pays_for_them_again(monkeypatch):
    config = (*FLORA, "rounds=3")
    uninterrupted = federated_training(small_config(*config))
    honest = flows.federated_round.close_round

    def die_after(run, plan, *args, **kwargs):
        record = honest(run, plan, *args, **kwargs)
        if plan.round_index == 2:
            raise PowerCutError
        return record

    monkeypatch.setattr(flows.federated_round, "close_round", die_after)
    with pytest.raises(PowerCutError):
        federated_training(small_config(*config))
    monkeypatch.setattr(flows.federated_round, "close_round", honest)
    settings = read_settings()
    store = open_store(settings.store_url)
    (run_id,) = set(list_run_ids(store)) - {uninterrupted.run_id}
    shutil.rmtree(settings.home / "private" / run_id)
    summary = federated_training(small_config(*config, f"resume_run={run_id}"))
    assert summary.adapter_sha256 == uninterrupted.adapter_sha256
    (*_, last) = read_records(store, run_id)
    sizes = [store.size(RoundKeys(run_id, t).adapter(keys.MERGE)) or 0 for t in (1, 2)]
    assert merge_lines(last.collection.ledger) == {(client, 1): sum(sizes) for client in COHORT}
