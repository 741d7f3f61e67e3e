"""Cohorts: seeded, sorted, of the size asked for."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.cohorts.sampling import sample_cohort

CLIENTS = [f"c{i:02d}" for i in range(20)]


@given(st.permutations(CLIENTS), st.integers(1, 20), st.integers(0, 5), st.integers(1, 50), st.integers(0, 2**31 - 1))
def test_cohort_has_its_size_and_does_not_depend_on_the_order_of_clients(clients, size, overshoot, round_index, seed):
    cohort = sample_cohort(clients, cohort_size=size, overshoot=overshoot, round_index=round_index, seed=seed)
    again = sample_cohort(CLIENTS, cohort_size=size, overshoot=overshoot, round_index=round_index, seed=seed)
    assert cohort == again == tuple(sorted(set(cohort)))
    assert len(cohort) == min(20, size + overshoot)


def test_zero_means_everyone():
    assert sample_cohort(CLIENTS, cohort_size=0, overshoot=0, round_index=1, seed=0) == tuple(CLIENTS)


def test_rounds_and_seeds_draw_different_cohorts():
    cohorts = {
        sample_cohort(CLIENTS, cohort_size=5, overshoot=0, round_index=t, seed=s) for t in range(5) for s in range(3)
    }
    assert len(cohorts) > 10
