"""What clients send, honest or not: admitted, refused by name, or none of the round's business."""

import json
from dataclasses import replace

import pytest
import torch

from infra.booking import MAX_RECORD_BYTES
from infra.directory_store import DirectoryStore
from infra.inbox import MAX_WORDS, Inbox
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import dense_product
from tasks.errors import StoreUnavailableError
from tasks.rounds import keys
from tasks.rounds.records import ClientFailure, Collection, decode, encode, sha256
from tests.flows.staged import CLIENTS, Staged, stage_round

OTHERS = ["c01", "c02", "c03", "c04"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    staged = stage_round(tmp_path_factory.mktemp("trained") / "store")
    staged.train(*CLIENTS)
    return staged


@pytest.fixture(scope="module")
def honest(trained):
    """What is collected when nothing is spoiled."""
    return trained.look().close()


@pytest.fixture
def staged(trained, tmp_path) -> Staged:
    return trained.copy(tmp_path / "store")


class Watched(DirectoryStore):
    """A store in which reading one key raises the given errors first, and is remembered."""

    def __init__(self, staged, key, *errors):
        super().__init__(staged.folder)
        self._key, self._errors, self.whole, self.longest = key, iter(errors), 0, 0

    def get(self, key):
        self.whole += key == self._key
        self._strike(key)
        return super().get(key)

    def get_range(self, key, start, length):
        self.longest = max(self.longest, length if key == self._key else 0)
        self._strike(key)
        return super().get_range(key, start, length)

    def _strike(self, key):
        if key == self._key and (error := next(self._errors, None)) is not None:
            raise error


def quarantined(staged, client="c00", attempt=1):
    return json.loads(staged.store.get(staged.keys.quarantine(client, attempt)))


def assert_only_refused(inbox: Inbox, reason, client="c00", attempt=1):
    assert {key: refusal.reason for key, refusal in inbox.refused.items()} == {(client, attempt): reason}
    assert sorted(inbox.accepted) == [c for c in CLIENTS if c != client], "the others are untouched"


def each(adapter, change):
    return LoraAdapter({path: change(pair) for path, pair in adapter.pairs.items()}, adapter.dense)


def test_honest_updates_are_accepted_with_the_facts_of_their_uploads(staged):
    inbox = staged.look()
    assert (inbox.refused, sorted(inbox.accepted), inbox.num_answered) == ({}, CLIENTS, 5)
    for client, accepted in inbox.accepted.items():
        update, share, manifest = staged.update(client), staged.share(client), staged.manifest(client)
        squares = [
            (dense_product(pair) - dense_product(share.pairs[path])).square().sum()
            for path, pair in update.pairs.items()
        ]
        assert accepted.update_norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-6)
        assert accepted.update_norm > 0
        assert accepted.update_sha256 == sha256(staged.store.get(staged.key(client, keys.UPDATE)))
        assert accepted.manifest_sha256 == sha256(staged.store.get(staged.key(client, keys.MANIFEST)))
        assert accepted.num_examples == len(staged.bench.client_indices(client)[0])
        assert (accepted.attempt, accepted.rank) == (1, staged.initial.ranks[client])
        assert (accepted.metrics, accepted.training_s) == (manifest.metrics, manifest.training_s)


def test_an_altered_update_is_refused_and_quarantined_with_the_reason(staged):
    key = staged.key("c00", keys.UPDATE)
    data = bytearray(staged.store.get(key))
    data[-1] ^= 1
    staged.store.put(key, bytes(data))
    inbox = staged.look()
    assert_only_refused(inbox, "altered")
    detail = inbox.refused["c00", 1].detail
    assert key in detail
    assert quarantined(staged) == {"reason": "altered", "detail": detail}


def test_a_manifest_without_its_update_is_incomplete(staged):
    staged.store.delete(staged.key("c00", keys.UPDATE))
    assert_only_refused(staged.look(), "incomplete")


@pytest.mark.parametrize("spoil", [lambda _: b"\xff not json", lambda data: data[:-1] + b',"extra":1}'])
def test_a_manifest_that_is_not_exactly_one_is_unreadable(staged, spoil):
    key = staged.key("c00", keys.MANIFEST)
    staged.store.put(key, spoil(staged.store.get(key)))
    assert_only_refused(staged.look(), "unreadable")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("nonce", "0" * 32, "wrong-round"),
        ("base_digest", "b" * 64, "wrong-base"),
        ("share_sha256", "b" * 64, "wrong-share"),
        ("round_index", 2, "wrong-round"),
        ("attempt", 2, "wrong-round"),
        ("client_id", "c01", "wrong-round"),
    ],
)
def test_a_manifest_for_something_else_is_refused_with_its_reason(staged, field, value, reason):
    staged.claim("c00", **{field: value})
    inbox = staged.look()
    assert_only_refused(inbox, reason)
    assert field in inbox.refused["c00", 1].detail


def test_another_clients_upload_does_not_pass_under_ones_own_key(staged):
    for name in (keys.UPDATE, keys.MANIFEST):
        staged.store.put(staged.key("c00", name), staged.store.get(staged.key("c03", name)))
    assert_only_refused(staged.look(), "wrong-round")


def test_an_update_of_another_rank_is_refused(staged):
    staged.send("c00", each(staged.update("c00"), lambda pair: replace(pair, a=pair.a[:1], b=pair.b[:, :1])))
    assert_only_refused(staged.look(), "wrong-rank")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused(staged, value):
    assert staged.plan.uplink_codec == "fp32"
    staged.send("c00", each(staged.update("c00"), lambda pair: LoraPair(pair.a, torch.full_like(pair.b, value))))
    assert_only_refused(staged.look(), "non-finite")


def test_bytes_that_are_no_tensors_are_unreadable(staged):
    staged.store.put(staged.key("c00", keys.UPDATE), b"cut")
    staged.claim("c00", update_sha256=sha256(b"cut"), update_bytes=3)
    assert_only_refused(staged.look(), "unreadable")


def test_a_too_large_update_is_refused_without_being_read(staged):
    key = staged.key("c00", keys.UPDATE)
    staged.store.put(key, bytes(2_000_000))
    store = Watched(staged, key)
    inbox = Inbox(store, staged.plan)
    inbox.look()
    assert_only_refused(inbox, "too-large")
    assert (store.whole, store.longest) == (0, 0)


@pytest.mark.parametrize("name", [keys.MANIFEST, keys.FAILURE])
def test_a_record_too_large_to_be_one_is_refused_without_being_read_whole(staged, name):
    staged.store.delete(staged.key("c00", keys.MANIFEST))
    staged.store.put(staged.key("c00", name), b" " * (MAX_RECORD_BYTES + 1))
    store = Watched(staged, staged.key("c00", name))
    inbox = Inbox(store, staged.plan)
    inbox.look()
    assert_only_refused(inbox, "too-large")
    assert store.whole == 0
    assert store.longest <= MAX_RECORD_BYTES + 1


def test_a_second_attempt_counts_after_a_refused_first_and_both_are_booked(staged):
    staged.train("c00", attempt=2)
    staged.claim("c00", nonce="0" * 32)
    inbox = staged.look()
    assert sorted(inbox.accepted) == CLIENTS
    assert inbox.accepted["c00"].attempt == 2
    collection = inbox.close()
    assert [(r.client_id, r.attempt, r.reason) for r in collection.refused] == [("c00", 1, "wrong-round")]
    assert {line.attempt for line in collection.ledger if line.client_id == "c00"} == {1, 2}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{}", "unreadable"),
        (b"", "unreadable"),
        (encode(ClientFailure(client_id="c01", attempt=7, reason="DataError", detail="gone")), "DataError"),
        (encode(ClientFailure(client_id="c00", attempt=1, reason="x" * 9000, detail="y" * 900_000)), "x" * MAX_WORDS),
    ],
    ids=["empty object", "empty", "names another client", "huge"],
)
def test_a_failure_is_its_own_keys_clients_whatever_it_says(staged, data, reason):
    staged.store.delete(staged.key("c00", keys.MANIFEST))
    staged.store.put(staged.key("c00", keys.FAILURE), data)
    inbox = staged.look()
    assert_only_refused(inbox, reason)
    assert len(inbox.refused["c00", 1].detail) <= MAX_WORDS
    assert quarantined(staged)["detail"] == inbox.refused["c00", 1].detail
    assert inbox.close().missing == ()


def test_what_a_manifest_says_is_kept_short_when_it_is_refused(staged):
    staged.claim("c00", nonce="n" * 900_000)
    inbox = staged.look()
    assert_only_refused(inbox, "wrong-round")
    assert len(inbox.refused["c00", 1].detail) <= MAX_WORDS
    assert len(quarantined(staged)["detail"]) <= MAX_WORDS


@pytest.mark.parametrize(
    "tail",
    [
        "c00/manifest.json",
        "c00/x/manifest.json",
        "c00/1/deep/manifest.json",
        "c00/-1/manifest.json",
        "stray",
        "c99/1/manifest.json",
        "c99/1/failure.json",
        "C00/1/failure.json",
    ],
)
def test_strange_keys_and_strangers_are_none_of_the_rounds_business(staged, honest, tail):
    staged.store.put(staged.keys.uplinks + tail, b"{}")
    assert staged.look().close() == honest


def test_a_round_that_nobody_answered_misses_everybody(tmp_path):
    collection = stage_round(tmp_path).look().close()
    assert collection == Collection(accepted=(), refused=(), missing=tuple(CLIENTS), ledger=())


@pytest.mark.parametrize("name", [keys.UPDATE, keys.MANIFEST])
def test_a_store_that_does_not_answer_blames_nobody_and_the_next_look_goes_on(staged, name):
    outage = StoreUnavailableError("store", "does not answer")
    inbox = Inbox(Watched(staged, staged.key("c01", name), outage), staged.plan)
    with pytest.raises(StoreUnavailableError):
        inbox.look()
    assert (inbox.refused, "c01" in inbox.accepted) == ({}, False)
    inbox.look()
    assert sorted(inbox.accepted) == CLIENTS


def test_a_manifest_without_the_figure_that_weights_rest_on_is_refused(staged):
    asked = staged.planned(quality_metric="validation_accuracy")
    for client in OTHERS:
        staged.claim(client, metrics={"validation_accuracy": 0.5})
    assert_only_refused(asked.look(), "no-quality")


def test_a_collection_with_refusals_survives_being_written(staged):
    staged.claim("c00", nonce="0" * 32)
    collection = staged.look().close()
    assert decode(Collection, encode(collection), "collection") == collection
