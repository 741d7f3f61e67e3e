"""Records: canonical bytes, strict reading."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import IntegrityError
from tasks.rounds.records import GlobalModel, RoundRecord, UpdateManifest, check_digest, decode, encode, sha256

DIGEST = "a" * 64
MODEL = GlobalModel(sha256=DIGEST, round_index=0)


def manifest(**changes):
    fields = {
        "run_id": "run-1",
        "round_index": 3,
        "client_id": "c01",
        "attempt": 1,
        "nonce": "n",
        "base_digest": DIGEST,
        "share_sha256": DIGEST,
        "update_sha256": DIGEST,
        "update_bytes": 10,
        "num_examples": 5,
        "num_steps": 2,
        "training_s": 0.1,
        "metrics": {"loss": 0.5},
    }
    return UpdateManifest(**(fields | changes))


@given(st.permutations(["c03", "c01", "c02"]))
def test_equal_records_have_equal_bytes_whatever_the_order_of_keys(order):
    records = [
        RoundRecord(run_id="r", round_index=0, outcome="initial", models={"global": MODEL}, ranks=ranks)
        for ranks in (dict.fromkeys(order, 4), dict.fromkeys(sorted(order), 4))
    ]
    assert encode(records[0]) == encode(records[1])


def test_record_round_trips():
    record = manifest()
    assert decode(UpdateManifest, encode(record), "key") == record


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        encode(manifest())[:-1],
        encode(manifest()).replace(b'"num_examples":5', b'"num_examples":0'),
        encode(manifest()).replace(b'"num_examples":5', b'"num_examples":-5'),
        encode(manifest()).replace(b'"num_examples":5', b'"num_examples":1e12'),
        encode(manifest()).replace(b'"num_examples":5', b'"num_examples":"5"'),
        encode(manifest()).replace(b'"attempt":1', b'"attempt":1,"extra":1'),
        encode(manifest()).replace(DIGEST.encode(), b"../../etc", 1),
    ],
)
def test_anything_but_an_exact_record_is_refused_by_name(data):
    with pytest.raises(IntegrityError, match=r"uplink/c01.*UpdateManifest"):
        decode(UpdateManifest, data, "uplink/c01")


def test_altered_bytes_are_noticed():
    data = b"adapter"
    assert check_digest(data, sha256(data), "key") == data
    with pytest.raises(IntegrityError, match="altered"):
        check_digest(b"adaptor", sha256(data), "key")
