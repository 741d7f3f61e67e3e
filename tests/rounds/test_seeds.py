"""Seeds: independent of company, different for every purpose."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.rounds.seeds import derive_nonce, derive_seed


@given(st.integers(0, 2**31), st.integers(0, 1000), st.sampled_from(["c00", "c01", "c10"]))
def test_seed_is_stable_and_in_range(seed, round_index, client):
    value = derive_seed(seed, "train", round_index, client)
    assert value == derive_seed(seed, "train", round_index, client)
    assert 0 <= value < 2**63


def test_every_label_changes_the_seed():
    seeds = {
        derive_seed(seed, purpose, round_index, client)
        for seed in (0, 1)
        for purpose in ("train", "cohort")
        for round_index in (1, 11)
        for client in ("c00", "c01")
    }
    assert len(seeds) == 16


def test_seed_is_the_same_on_every_machine_and_version():
    assert derive_seed(0, "train", 1, "c00") == 2501075056497408976


def test_nonce_ties_run_round_and_client():
    nonces = {derive_nonce(run, t, c) for run in ("a", "b") for t in (1, 2) for c in ("c00", "c01")}
    assert len(nonces) == 8
