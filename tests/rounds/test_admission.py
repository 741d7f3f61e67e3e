"""A manifest must answer its own invitation."""

import msgspec
import pytest
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.errors import UpdateRefusedError
from tasks.rounds.admission import admit_manifest, check_update_size
from tasks.rounds.records import Invitation, RoundPlan, Share
from tests.rounds.test_records import DIGEST, manifest

SHARE = Share(key="k", sha256=DIGEST, num_bytes=100, ranks={"fc": 2})
INVITATION = Invitation(client_id="c01", rank=2, nonce="n", pool="inline")
PLAN = RoundPlan(
    run_id="run-1",
    round_index=3,
    base_digest=DIGEST,
    models={"global": DIGEST},
    invitations=(INVITATION,),
    shares={"global/2": SHARE},
    uplink_codec="fp32",
    downlink_codec="fp32",
    cohort_size=1,
    quorum=1,
    deadline_s=60.0,
)


def test_an_answer_to_the_invitation_is_admitted():
    admit_manifest(manifest(), PLAN, INVITATION, attempt=1)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("run_id", "run-2", "wrong-round"),
        ("round_index", 2, "wrong-round"),
        ("client_id", "c02", "wrong-round"),
        ("attempt", 2, "wrong-round"),
        ("nonce", "other", "wrong-round"),
        ("base_digest", "b" * 64, "wrong-base"),
        ("share_sha256", "b" * 64, "wrong-share"),
    ],
)
def test_a_manifest_for_something_else_is_refused_with_its_reason(field, value, reason):
    with pytest.raises(UpdateRefusedError, match=field) as caught:
        admit_manifest(msgspec.structs.replace(manifest(), **{field: value}), PLAN, INVITATION, attempt=1)
    assert caught.value.reason == reason


def test_an_upload_larger_than_its_share_allows_is_refused_before_it_is_read():
    share = LoraAdapter({"fc": LoraPair(torch.zeros(2, 3), torch.zeros(4, 2))})
    check_update_size(60_000, share, "client c01")
    with pytest.raises(UpdateRefusedError, match="larger") as caught:
        check_update_size(70_000, share, "client c01")
    assert caught.value.reason == "too-large"
