"""Methods that send one factor: what crosses the link, what never moves or never leaves, what is refused."""

import json

import numpy as np
import pytest
import torch

from flows.federated_training import federated_training
from infra.object_store import ObjectStore, open_store
from infra.private_state import PrivateState
from infra.run_store import read_adapter, read_records
from infra.settings import read_settings
from tasks.adapters.blob import from_blob
from tasks.adapters.lora import LoraAdapter, prefix
from tasks.adapters.products import dense_product
from tasks.adapters.thin import thin
from tasks.evaluate_adapter import evaluate_adapter
from tasks.local_work import OWN
from tasks.rounds import keys
from tasks.rounds.keys import GLOBAL
from tests.flows.small import small_config
from tests.flows.staged import RUN_ID, Staged
from tests.flows.told import (
    COHORT,
    FEDSA,
    FFA,
    HALF,
    THREE,
    Story,
    before,
    candidate_of,
    mean_product,
    payload,
    settled,
    told,
)

SIDES = {"b": 0, "a": 1}  # of a module's [O, I]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def ffa(request, tmp_path_factory) -> Story:
    codecs = HALF if request.param == "fp16" else ()
    return told(tmp_path_factory.mktemp("ffa"), (*FFA, *codecs), COHORT, COHORT, [])


@pytest.fixture(scope="module")
def fedsa(tmp_path_factory) -> Story:
    return told(tmp_path_factory.mktemp("fedsa"), FEDSA, COHORT, COHORT, [])


def numbers(staged: Staged, client: str, *factors: str) -> int:
    """Numbers in some factors of a client's pairs, and in the tensors that are trained whole."""
    bench = staged.bench
    ranks = bench.module_ranks(staged.initial.ranks[client])
    sizes = [rank * bench.module_shapes[path][SIDES[factor]] for path, rank in ranks.items() for factor in factors]
    return sum(sizes) + bench.dense_parameters


def sent(staged: Staged, client: str) -> bytes:
    return staged.store.get(staged.key(client, keys.UPDATE))


def trained_b(store: ObjectStore) -> list[str]:
    """Tensors of any file in a store that hold a factor b other than zero."""
    files = [found.key for found in store.list("runs/") if found.key.endswith(".safetensors")]
    assert files
    tensors = {(key, name): t for key in files for name, t in from_blob(store.get(key), key).items()}
    return [f"{key} {name}" for (key, name), tensor in tensors.items() if "lora_B" in name and tensor.any()]


# --- FFA ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", COHORT)
def test_ffa_sends_b_alone_both_ways(ffa, client):
    staged = ffa.rounds[2]
    width = {"fp32": 4, "fp16": 2}[staged.plan.uplink_codec]
    (invitation,) = (i for i in staged.plan.invitations if i.client_id == client)
    share = staged.store.get(staged.plan.share_of(invitation).key)
    assert payload(sent(staged, client)) == payload(share) == width * numbers(staged, client, "b")
    assert not any("lora_A" in name for data in (sent(staged, client), share) for name in from_blob(data, client))


def test_ffa_saves_exactly_factor_a_of_what_rbla_sends(ffa, tmp_path):
    codecs = HALF if ffa.rounds[1].plan.uplink_codec == "fp16" else ()
    rbla = told(tmp_path, (*THREE, *codecs), COHORT).rounds[1]
    for client in COHORT:
        whole, thinned = (payload(sent(staged, client)) for staged in (rbla, ffa.rounds[1]))
        assert whole - thinned == whole * (numbers(rbla, client, "a") - rbla.bench.dense_parameters) / numbers(
            rbla, client, "a", "b"
        )
        assert rbla.manifest(client).num_steps == ffa.rounds[1].manifest(client).num_steps


@pytest.mark.parametrize("client", COHORT)
def test_ffa_server_weaves_what_the_client_trained(ffa, client):
    """Not only what it sent: were factor a trained along, the server would put b on another one."""
    for path, pair in ffa.rounds[2].update(client).pairs.items():
        trained = ffa.ends[2, client].pairs[path]
        assert torch.equal(trained.a, pair.a)
        half = 2**-11 if ffa.rounds[2].plan.uplink_codec == "fp16" else 0.0
        torch.testing.assert_close(pair.b, trained.b, rtol=half, atol=half / 2**14)


def test_ffa_never_moves_factor_a(ffa):
    initial = ffa.rounds[1].bench.initial_adapter()
    after = before(ffa.rounds[3])
    assert after.ranks == initial.ranks
    for path, pair in after.pairs.items():
        assert torch.equal(pair.a, initial.pairs[path].a)
        assert not torch.equal(pair.b, initial.pairs[path].b)


@pytest.mark.parametrize("round_index", [1, 2])
def test_ffa_gives_the_exact_mean_of_products(ffa, round_index):
    for path, pair in before(ffa.rounds[round_index + 1]).pairs.items():
        np.testing.assert_allclose(
            dense_product(pair).numpy(), mean_product(ffa.rounds[round_index], path), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("client", COHORT)
def test_ffa_client_starts_from_the_servers_b_on_the_frozen_a(ffa, client):
    staged, start = ffa.rounds[2], ffa.starts[2, client]
    for path, pair in prefix(before(staged), start.ranks).pairs.items():
        assert torch.equal(start.pairs[path].a, pair.a)
        expected = pair.b if staged.plan.downlink_codec == "fp32" else pair.b.half().float()
        assert torch.equal(start.pairs[path].b, expected)


# --- FedSA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", COHORT)
def test_fedsa_sends_a_alone_both_ways(fedsa, client):
    staged = fedsa.rounds[2]
    (invitation,) = (i for i in staged.plan.invitations if i.client_id == client)
    share = staged.store.get(staged.plan.share_of(invitation).key)
    assert payload(sent(staged, client)) == payload(share) == 4 * numbers(staged, client, "a")
    assert not any("lora_B" in name for data in (sent(staged, client), share) for name in from_blob(data, client))


def test_fedsa_leaves_no_trained_b_in_the_store(fedsa):
    assert trained_b(fedsa.rounds[3].store) == []


@pytest.mark.parametrize("client", COHORT)
def test_fedsa_client_goes_on_from_its_own_b_and_the_common_a(fedsa, client):
    start = fedsa.starts[2, client]
    kept = PrivateState(fedsa.home, RUN_ID, client).latest(OWN, 2)
    assert kept is not None
    assert kept[0] == 1
    for path, pair in prefix(before(fedsa.rounds[2]), start.ranks).pairs.items():
        own = kept[1].pairs[path]
        assert own.b.any()
        assert torch.equal(start.pairs[path].b, own.b)
        assert torch.equal(start.pairs[path].a, pair.a)
        assert not torch.equal(pair.a, own.a), "others had their part in it"


def test_fedsa_gives_the_mean_of_a_over_the_owners_of_each_row(fedsa):
    staged, after = fedsa.rounds[1], before(fedsa.rounds[2])
    sizes = {client: staged.manifest(client).num_examples for client in COHORT}
    for path, pair in after.pairs.items():
        rows = {client: staged.update(client).pairs[path].a.double().numpy() for client in COHORT}
        for slot in range(pair.rank):
            owners = [client for client in COHORT if len(rows[client]) > slot]
            mean = sum(sizes[c] * rows[c][slot] for c in owners) / sum(sizes[c] for c in owners)
            np.testing.assert_allclose(pair.a[slot].numpy(), mean, rtol=0, atol=1e-6)


def test_fedsa_is_judged_by_the_clients_mean_on_their_own_examples(fedsa):
    staged = fedsa.rounds[2]
    found = evaluate_adapter.fn(staged.plan, candidate_of(staged), staged.url, staged.bench)
    manifests = [staged.manifest(client) for client in COHORT]
    total = sum(m.num_examples * m.metrics["validation_accuracy"] for m in manifests)
    expected = total / sum(m.num_examples for m in manifests)
    assert found["accuracy"] == found["client_validation_accuracy"] == pytest.approx(expected, rel=1e-12)
    assert len({m.metrics["validation_accuracy"] for m in manifests}) > 1


def test_fedsa_client_that_lost_its_home_starts_from_the_servers_b(fedsa, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWEAVE_HOME", str(tmp_path / "new"))
    staged = fedsa.copy(3, tmp_path)
    staged.train("c00", "c01")
    assert sorted(staged.look().accepted) == ["c00", "c01"]
    kept = PrivateState(tmp_path / "new", RUN_ID, "c00")
    assert (kept.latest(OWN, 3), kept.latest(OWN, 4) is None) == (None, False)


# --- thin updates that are none -------------------------------------------------------------------------------


def without(message: LoraAdapter) -> LoraAdapter:
    return LoraAdapter({}, dict(list(message.dense.items())[:-1]))


def shorter(message: LoraAdapter) -> LoraAdapter:
    return LoraAdapter({}, {n: t[..., :1] if "lora_" in n else t for n, t in message.dense.items()})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda update, parts: without(thin(update, parts)), "missing-tensor"),
        (lambda update, parts: shorter(thin(update, parts)), "wrong-shape"),
        (lambda update, parts: thin(update, "b" if parts == "a" else "a"), "missing-tensor"),
        (lambda update, parts: LoraAdapter(update.pairs, thin(update, parts).dense), "unknown-tensor"),
    ],
    ids=["missing factor", "wrong shape", "other factor", "both factors"],
)
@pytest.mark.parametrize("overrides", [FFA, FEDSA], ids=["ffa", "fedsa"])
def test_a_thin_update_that_does_not_fit_is_quarantined_and_the_run_goes_on(
    thin_rounds, tmp_path, overrides, spoil, reason
):
    staged = thin_rounds[overrides].copy(tmp_path / "store")
    staged.send("c00", spoil(staged.update("c00"), staged.bench.exchange(staged.plan).uplink))
    collection = staged.look().close()
    assert [(r.client_id, r.reason) for r in collection.refused] == [("c00", reason)]
    kept = json.loads(staged.store.get(staged.keys.quarantine("c00", 1)))
    assert kept == {"reason": reason, "detail": collection.refused[0].detail}
    following = settled(staged)
    assert sorted(a.client_id for a in following.initial.collection.accepted) == ["c01", "c02"]
    assert following.plan.round_index == 2


@pytest.fixture(scope="module")
def thin_rounds(tmp_path_factory) -> dict[tuple[str, ...], Staged]:
    """One trained round of each method that nobody has aggregated yet."""
    folder = tmp_path_factory.mktemp("thin")
    return {overrides: told(folder / overrides[2], overrides, COHORT).rounds[1] for overrides in (FFA, FEDSA)}


# --- whole runs -----------------------------------------------------------------------------------------------


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_a_run_of_ffa_ends_with_the_a_it_began_with():
    summary = federated_training(small_config(*FFA))
    store = open_store(summary.store_url)
    first, *_, last = read_records(store, summary.run_id)
    assert (last.outcome, last.round_index) == ("committed", 2)
    initial, final = (read_adapter(store, summary.run_id, record.models[GLOBAL]) for record in (first, last))
    assert all(torch.equal(pair.a, initial.pairs[path].a) for path, pair in final.pairs.items())
    assert any(pair.b.any() for pair in final.pairs.values())


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_backend", "home")
def test_a_run_of_fedsa_is_judged_by_its_clients_and_keeps_their_b_at_home():
    summary = federated_training(small_config(*FEDSA))
    store = open_store(summary.store_url)
    last = read_records(store, summary.run_id)[-1]
    accepted = last.collection.accepted
    total = sum(a.num_examples * a.metrics["validation_accuracy"] for a in accepted)
    assert summary.metrics["accuracy"] == pytest.approx(total / sum(a.num_examples for a in accepted), rel=1e-12)
    assert trained_b(store) == []
    for client in COHORT:
        kept = PrivateState(read_settings().home, summary.run_id, client).latest(OWN, 3)
        assert kept is not None
        assert kept[0] == 2
