"""What the accountants bound: monotone, never below the exact value, and the same answer from both."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ConfigError, UnknownNameError
from tasks.privacy import accountant as module
from tasks.privacy.accountant import ACCOUNTANTS, Accountant, epsilon, steps_within
from tests.privacy.oracles import gaussian_epsilon

DELTA = 1e-5


def spent(noise: float, rate: float, steps: int, *, delta: float = DELTA, accountant: Accountant = "rdp") -> float:
    return epsilon(noise_multiplier=noise, sampling_rate=rate, steps=steps, delta=delta, accountant=accountant)


def test_oracle_gives_the_textbook_value():
    # Noise 1, one step: delta(epsilon = 1) = cdf(-0.5) - e cdf(-1.5) = 0.126936737507, from tables of the normal.
    assert gaussian_epsilon(1.0, 1, 0.126936737507) == pytest.approx(1.0, abs=1e-9)


@settings(derandomize=True, max_examples=15)
@given(noise=st.floats(0.7, 50), steps=st.integers(1, 200), delta=st.sampled_from((1e-3, 1e-5, 1e-8)))
def test_without_sampling_bounds_are_above_the_exact_value_and_not_by_much(noise: float, steps: int, delta: float):
    exact = gaussian_epsilon(noise, steps, delta)
    moments = spent(noise, 1.0, steps, delta=delta)
    assert exact <= moments <= 1.35 * exact + 0.01


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 1), (2.0, 10), (10.0, 100), (5.0, 30)])
def test_numerical_composition_is_above_the_exact_value_by_its_own_error(noise: float, steps: int):
    exact = gaussian_epsilon(noise, steps, DELTA)
    numerical = spent(noise, 1.0, steps, accountant="prv")
    assert exact <= numerical <= exact + 0.015
    assert numerical <= spent(noise, 1.0, steps)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 1000), (1.0, 0.1, 50), (3.0, 0.5, 10)])
def test_accountants_agree_within_their_slack(noise: float, rate: float, steps: int):
    moments, numerical = spent(noise, rate, steps), spent(noise, rate, steps, accountant="prv")
    assert numerical <= moments <= 1.25 * numerical


@settings(derandomize=True, max_examples=6)
@given(noise=st.floats(0.6, 5), rate=st.floats(0.001, 0.9), steps=st.integers(1, 500), more=st.floats(1.05, 2.0))
def test_spending_rises_with_steps_and_rate_and_falls_with_noise_and_delta(
    noise: float, rate: float, steps: int, more: float
):
    base = spent(noise, rate, steps)
    assert 0 < base < math.inf
    assert spent(noise, rate, math.ceil(steps * more)) > base
    assert spent(noise, min(1.0, rate * more), steps) >= base
    assert spent(noise * more, rate, steps) < base
    assert spent(noise, rate, steps, delta=DELTA * more) < base


def test_sampling_makes_a_step_cheaper():
    assert spent(1.0, 0.01, 100) < 0.1 * spent(1.0, 1.0, 100)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_ends_of_the_scale(accountant: Accountant):
    assert spent(0.0, 0.1, 5, accountant=accountant) == math.inf
    assert spent(1.0, 0.1, 0, accountant=accountant) == 0
    assert spent(1.0, 0.0, 5, accountant=accountant) == 0
    assert spent(0.0, 0.1, 0, accountant=accountant) == 0


def test_much_noise_or_hardly_any_is_accounted_for_without_a_warning():
    assert spent(1000.0, 1.0, 1) == pytest.approx(gaussian_epsilon(1000.0, 1, DELTA), abs=0.01)
    assert spent(0.02, 0.5, 1000) > 1e5


@pytest.mark.parametrize("target", [0.5, 2.0])
@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_steps_within_is_the_last_step_that_fits(target: float, accountant: Accountant):
    found = steps_within(target, noise_multiplier=1.5, sampling_rate=0.1, delta=DELTA, accountant=accountant)
    assert spent(1.5, 0.1, found, accountant=accountant) <= target
    assert spent(1.5, 0.1, found + 1, accountant=accountant) > target


def test_steps_within_ends_at_its_bound_and_starts_at_none():
    def found(target: float, noise: float, most: int) -> int:
        return steps_within(target, noise_multiplier=noise, sampling_rate=0.1, delta=DELTA, most=most)

    assert found(100.0, 50.0, 37) == 37
    assert found(math.inf, 0.0, 5) == 5
    assert found(100.0, 0.0, 5) == 0
    assert found(0.0, 1.0, 5) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": -1.0}, {"noise_multiplier": 0.001}, {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf}, {"sampling_rate": 1.5}, {"sampling_rate": -0.1}, {"delta": 0.0},
        {"delta": 1.0},
    ],
)  # fmt: skip
def test_numbers_out_of_bounds_are_refused(change: dict[str, float]):
    numbers = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "delta": DELTA, **change}
    with pytest.raises(ConfigError, match="privacy accountant"):
        spent(numbers["noise_multiplier"], numbers["sampling_rate"], 1, delta=numbers["delta"])


def test_negative_steps_are_refused():
    with pytest.raises(ConfigError, match="steps: cannot be negative"):
        spent(1.0, 0.1, -1)


@pytest.mark.parametrize("target", [-1.0, math.nan])
def test_a_budget_that_is_no_budget_is_refused(target: float):
    with pytest.raises(ConfigError, match="privacy budget"):
        steps_within(target, noise_multiplier=1.0, sampling_rate=0.1, delta=DELTA)


def test_unknown_accountant_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="prv, rdp"):
        spent(1.0, 0.1, 1, accountant="gdp")  # type: ignore[arg-type]


def test_numbers_that_the_accountant_fails_on_are_named():
    with pytest.raises(ConfigError, match=r"prv: cannot account.*noise multiplier 0\.02"):
        spent(0.02, 0.5, 1, accountant="prv")


def test_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr("tasks.privacy.extra.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rankweave\[privacy\]'"):
        module.epsilon(noise_multiplier=1.0, sampling_rate=0.1, steps=1, delta=DELTA)
