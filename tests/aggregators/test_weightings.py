"""Each weighting counts what it says it counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.aggregators.weightings import WEIGHTINGS, Contribution, by_examples, ranked, uniform, weighting
from tasks.errors import ConfigError, EmptyCohortError, InvalidWeightError, UnknownNameError


def contribution(
    norm: float = 1.0, quality: float | None = 0.5, *, examples: int = 10, client_id: str = "c00"
) -> Contribution:
    return Contribution(client_id, examples, norm, quality)


figures = st.lists(
    st.tuples(st.floats(0, 1e6), st.floats(0, 1)).map(lambda pair: contribution(*pair)), min_size=1, max_size=8
)


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
@settings(derandomize=True, max_examples=30)
@given(contributions=figures)
def test_weights_are_positive_and_follow_their_client(name: str, contributions: list[Contribution]):
    weights = weighting(name)(contributions)
    assert len(weights) == len(contributions)
    assert min(weights) > 0
    assert weighting(name)(contributions[::-1]) == weights[::-1]


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_no_contributions_is_an_error(name: str):
    with pytest.raises(EmptyCohortError):
        weighting(name)([])


def test_by_examples_counts_examples():
    assert by_examples([contribution(examples=120), contribution(examples=40)]) == [120.0, 40.0]


def test_by_examples_refuses_a_client_without_any():
    with pytest.raises(InvalidWeightError, match=r"client c03.*0 examples"):
        by_examples([contribution(), contribution(examples=0, client_id="c03")])


def test_uniform_counts_heads():
    assert uniform([contribution(examples=1), contribution(examples=99)]) == [1.0, 1.0]


def test_ranked_follows_quality_times_relative_norm():
    # Scores: 0.9 * 1/4 = 0.225, 0.5 * 2/4 = 0.25, 0.2 * 4/4 = 0.2.
    contributions = [contribution(1.0, 0.9), contribution(2.0, 0.5), contribution(4.0, 0.2)]
    assert ranked(contributions) == [2.0, 3.0, 1.0]


def test_ranked_ties_share_their_mean_rank():
    contributions = [contribution(quality=q) for q in (0.5, 0.1, 0.5, 0.5, 0.9)]
    assert ranked(contributions) == [3.0, 1.0, 3.0, 3.0, 5.0]


def test_ranked_falls_back_on_quality_when_nobody_moved():
    assert ranked([contribution(0.0, 0.2), contribution(0.0, 0.8)]) == [1.0, 2.0]


@settings(derandomize=True, max_examples=30)
@given(contributions=figures)
def test_ranked_weights_sum_to_the_sum_of_ranks(contributions: list[Contribution]):
    count = len(contributions)
    assert sum(ranked(contributions)) == count * (count + 1) / 2


def test_ranked_without_quality_says_to_set_a_validation_share():
    with pytest.raises(ConfigError, match=r"client c07.*validation share"):
        ranked([contribution(), contribution(quality=None, client_id="c07")])


@pytest.mark.parametrize(("norm", "quality"), [(-1.0, 0.5), (float("inf"), 0.5), (1.0, float("nan"))])
def test_ranked_refuses_figures_that_cannot_be_ranked(norm: float, quality: float):
    with pytest.raises(InvalidWeightError, match="client c09"):
        ranked([contribution(), contribution(norm, quality, client_id="c09")])


def test_unknown_weighting_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="by_examples, ranked, uniform"):
        weighting("by_score")
