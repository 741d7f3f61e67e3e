"""What crosses the link in each form, and that client and server put back the same."""

from collections.abc import Mapping

import pytest
import torch

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair
from tasks.adapters.thin import Parts, thin
from tasks.errors import UpdateRefusedError
from tasks.rounds.exchange import Exchange
from tasks.rounds.records import Invitation, RoundPlan, Share
from tests.strategies import normal, pair_of

FORM = LayerForm("linear", (5,))
RANKS = {"layers.0": 2}
FORMS = [("both", "both"), ("b", "b"), ("a", "a"), ("none", "both")]
INVITATION = Invitation(client_id="c01", rank=2, nonce="0" * 32, pool="inline")
PLAN = RoundPlan(
    run_id="run-1",
    round_index=3,
    base_digest="a" * 64,
    models={"global": "b" * 64},
    invitations=(INVITATION,),
    shares={"global/2": Share(key="share", sha256="c" * 64, num_bytes=1, ranks=RANKS)},
    uplink_codec="fp32",
    downlink_codec="fp32",
    cohort_size=1,
    quorum=1,
    deadline_s=1.0,
)


def whole(seed: int) -> LoraAdapter:
    return LoraAdapter({"layers.0": pair_of(FORM, 4, 2, seed=seed)}, {"bias": normal((4,), seed + 2)})


def exchange(downlink: Parts, uplink: Parts) -> Exchange:
    """An exchange whose clients know a pair that no share holds."""
    return Exchange(downlink, uplink, lambda *_asked: whole(100).pairs)


def assert_same_bits(got: LoraAdapter, pairs: Mapping[str, LoraPair], dense: Mapping[str, torch.Tensor]) -> None:
    assert (list(got.pairs), list(got.dense)) == (list(pairs), list(dense))
    for path, pair in pairs.items():
        assert torch.equal(got.pairs[path].a, pair.a)
        assert torch.equal(got.pairs[path].b, pair.b)
    assert all(torch.equal(got.dense[name], tensor) for name, tensor in dense.items())


def mixed(sent: LoraAdapter, parts: str) -> dict[str, LoraPair]:
    known, pair = whole(100).pairs["layers.0"], sent.pairs["layers.0"]
    a, b = (known.a if parts in {"b", "none"} else pair.a), (known.b if parts in {"a", "none"} else pair.b)
    return {"layers.0": LoraPair(a, b)}


def test_by_default_everything_crosses_as_it_is():
    plain, message = Exchange(), whole(1)
    assert plain.start(PLAN, INVITATION, message) is message
    assert plain.update(message, whole(2), "client c01") is message


@pytest.mark.parametrize(("downlink", "uplink"), FORMS)
def test_a_client_starts_from_what_was_sent_and_what_it_knows(downlink, uplink):
    share = whole(1)
    start = exchange(downlink, uplink).start(PLAN, INVITATION, thin(share, downlink))
    assert_same_bits(start, mixed(share, downlink), share.dense)


@pytest.mark.parametrize(("downlink", "uplink"), FORMS)
def test_an_update_is_whole_again_with_its_starts_factors(downlink, uplink):
    form, trained = exchange(downlink, uplink), whole(2)
    start = form.start(PLAN, INVITATION, thin(whole(1), downlink))
    update = form.update(thin(trained, uplink), start, "client c01, round 3")
    assert_same_bits(update, mixed(trained, uplink), trained.dense)


@pytest.mark.parametrize(("downlink", "uplink"), FORMS[1:])
def test_what_a_client_knows_is_asked_for_its_round_its_name_and_its_ranks(downlink, uplink):
    asked = []

    def known(*about):
        asked.append(about)
        return whole(100).pairs

    form = Exchange(downlink, uplink, known)
    form.start(PLAN, INVITATION, thin(whole(1), downlink))
    assert asked == [(3, "c01", RANKS)]


def test_an_update_that_lacks_its_factor_is_refused_in_the_clients_name():
    form = exchange("b", "b")
    message = thin(whole(2), "a")
    for refuse, subject in [
        (lambda: form.update(message, whole(1), "client c01, round 3"), "client c01, round 3, module layers.0"),
        (lambda: form.start(PLAN, INVITATION, message), "client c01, share, module layers.0"),
    ]:
        with pytest.raises(UpdateRefusedError, match=subject) as caught:
            refuse()
        assert caught.value.reason == "missing-tensor"
