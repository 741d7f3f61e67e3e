"""What a round teaches about its clients' limits."""

import msgspec

from tasks.rounds.capabilities import Limit
from tasks.rounds.limits import OUT_OF_MEMORY, learned_limits
from tasks.rounds.records import Acceptance, Collection, Invitation, Refusal, RoundPlan

DIGEST = "0" * 64
PLAN = RoundPlan(
    run_id="r",
    round_index=3,
    base_digest=DIGEST,
    models={},
    invitations=tuple(Invitation(client_id=f"c{i}", rank=8, nonce="", pool="inline") for i in range(3)),
    shares={},
    uplink_codec="fp32",
    downlink_codec="fp32",
    cohort_size=3,
    quorum=1,
    deadline_s=1.0,
)


def accepted(client, rank=8, **more):
    return Acceptance(
        client_id=client,
        attempt=1,
        rank=rank,
        manifest_sha256=DIGEST,
        update_sha256=DIGEST,
        num_examples=1,
        update_norm=1.0,
        training_s=1.0,
        metrics={},
        **more,
    )


def refused(client, reason=OUT_OF_MEMORY, round_index=3):
    return Refusal(client_id=client, round_index=round_index, attempt=1, reason=reason, detail="")


def learned(known=(), *, came=(), failed=(), plan=PLAN):
    collection = Collection(accepted=came, refused=failed, missing=(), ledger=())
    return learned_limits(dict(known), plan, collection, batch_size=32)


def test_nothing_happened_nothing_is_learnt():
    assert learned(came=(accepted("c0"),)) == {}
    known = {"c0": Limit(memory_rank=4, batch_size=8), "c9": Limit(pruned_rank=2)}
    assert learned(known, came=(accepted("c0"),)) == known


def test_what_a_client_managed_is_its_limit_and_others_stay():
    assert learned(came=(accepted("c0", 4, lowered="memory", batch_size=16),)) == {
        "c0": Limit(memory_rank=4, batch_size=16)
    }
    before = {"c0": Limit(memory_rank=4, batch_size=16)}
    assert learned(before, came=(accepted("c0", 3, lowered="pruned", batch_size=16),)) == {
        "c0": Limit(memory_rank=4, batch_size=16, pruned_rank=3)
    }


def test_a_client_that_failed_for_memory_is_offered_half_and_never_nothing():
    assert learned(failed=(refused("c0"),)) == {"c0": Limit(memory_rank=4, batch_size=16)}
    tiny = msgspec.structs.replace(PLAN, invitations=(Invitation(client_id="c0", rank=1, nonce="", pool="inline"),))
    assert learned(failed=(refused("c0"),), plan=tiny) == {"c0": Limit(memory_rank=1, batch_size=16)}
    last = Invitation(client_id="c0", rank=1, nonce="", pool="inline", batch_size=1)
    least = msgspec.structs.replace(PLAN, invitations=(last,))
    assert learned(failed=(refused("c0"),), plan=least) == {"c0": Limit(memory_rank=1, batch_size=1)}


def test_other_failures_other_rounds_and_strangers_teach_nothing():
    assert learned(failed=(refused("c0", "DataError"), refused("c1", round_index=2), refused("c9"))) == {}


def test_where_ranks_must_be_equal_only_the_batch_is_lowered():
    equal = msgspec.structs.replace(PLAN, equal_ranks=True)
    assert learned(failed=(refused("c0"),), plan=equal) == {"c0": Limit(batch_size=16)}


def test_a_client_whose_second_attempt_worked_is_judged_by_that():
    assert learned(came=(accepted("c0"),), failed=(refused("c0"),)) == {}
