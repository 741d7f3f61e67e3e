"""What a number of noisy rounds costs in privacy. Nothing is kept: what was spent follows from how many there were.

Who is hidden follows from what was clipped: a client in `private_mean`, an example in the local method `dp_sgd`.
"""

import math
import warnings
from typing import Literal

import numpy as np

from tasks.errors import ConfigError, UnknownNameError
from tasks.privacy.extra import check_installed

Accountant = Literal["rdp", "prv"]
ACCOUNTANTS: tuple[Accountant, ...] = ("rdp", "prv")
LEAST_NOISE = 0.01

# Opacus' own orders stop at 63, too low for much noise and few steps, and begin at 1.1, too high for little noise.
_ORDERS = [
    *(1.01, 1.02, 1.05),
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 768, 1024),
]


def epsilon(
    *, noise_multiplier: float, sampling_rate: float, steps: int, delta: float, accountant: Accountant = "rdp"
) -> float:
    """Bound the privacy spent by steps of the Poisson-sampled Gaussian mechanism.

    Each step takes every client (or example) with the same probability and independently, clips what it contributes,
    sums and adds Gaussian noise; neighbours differ in one client's being there at all. With sampling of another kind
    the number means nothing, save at rate 1, where nobody's luck is counted on.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm, z; 0, or at least 0.01.
        sampling_rate: Probability of taking part in one step, 0 to 1.
        steps: Steps, 0 or more: rounds, where clients are hidden.
        delta: The other half of the guarantee, above 0 and below 1; well below one over the number of clients.
        accountant: "rdp" (Rényi orders: fast, some percent too high) or "prv" (numerical composition: about 0.01 too
            high, seconds for many steps).

    Returns:
        Epsilon, an upper bound: 0 if nothing was released, infinity without noise.

    Raises:
        UnknownNameError: No such accountant.
        ConfigError: A number is out of its bounds, the accountant fails on it, or Opacus is not installed.

    Invariants:
        Rises with steps and rate, falls with noise and delta. At rate 1 never below the exact value of the Gaussian
        mechanism.

    References:
        Ilya Mironov, Kunal Talwar, Li Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 2019,
        arXiv 1908.10530, and Sivakanth Gopi, Yin Tat Lee, Lukas Wutschitz, "Numerical Composition of Differential
        Privacy", NeurIPS 2021, arXiv 2106.02848; both recalled, not re-read. Computed by Opacus 1.6, whose code was
        read. We differ from its defaults in the Rényi orders only.
    """
    _check(noise_multiplier, sampling_rate, delta, accountant)
    if steps < 0:
        raise ConfigError("privacy accountant, steps", "cannot be negative", got=steps)
    if steps == 0 or sampling_rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    check_installed("privacy accountant")
    try:
        spent = _spent((noise_multiplier, sampling_rate, steps), delta, accountant)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"privacy accountant {accountant}", "cannot account for these numbers",
            got=f"noise multiplier {noise_multiplier:g}, rate {sampling_rate:g}, {steps} steps, delta {delta:g}",
            remedy="raise the noise multiplier, or use the other accountant",
        ) from error  # fmt: skip
    return max(spent, 0.0)


def steps_within(
    target_epsilon: float,
    *,
    noise_multiplier: float,
    sampling_rate: float,
    delta: float,
    accountant: Accountant = "rdp",
    most: int = 100_000,
) -> int:
    """Return how many steps a privacy budget lasts for.

    Args:
        target_epsilon: What may be spent, 0 or more.
        noise_multiplier: As in `epsilon`.
        sampling_rate: As in `epsilon`.
        delta: As in `epsilon`.
        accountant: As in `epsilon`.
        most: Where the search ends.

    Returns:
        The largest number of steps, up to `most`, whose epsilon is not above the target.

    Raises:
        UnknownNameError: No such accountant.
        ConfigError: As `epsilon`, or the target is negative or NaN.
    """
    if not target_epsilon >= 0:
        raise ConfigError("privacy budget", "is not a number of 0 or more", got=target_epsilon)

    def is_within(steps: int) -> bool:
        spent = epsilon(
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            steps=steps,
            delta=delta,
            accountant=accountant,
        )
        return spent <= target_epsilon

    # Doubling first: few steps are cheap to account for, and most budgets end long before the bound.
    within, beyond = 0, 1
    while beyond <= most and is_within(beyond):
        within, beyond = beyond, beyond * 2
    beyond = min(beyond, most + 1)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        within, beyond = (middle, beyond) if is_within(middle) else (within, middle)
    return within


def _spent(history: tuple[float, float, int], delta: float, accountant: Accountant) -> float:
    from opacus.accountants import PRVAccountant, RDPAccountant

    # Opacus warns where a finer grid of orders would give a lower bound; the bound given holds all the same. At rate 1
    # the PRV takes the logarithm of 0 on purpose: minus infinity is where its density begins.
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest) alpha", category=UserWarning)
        if accountant == "prv":
            numerical = PRVAccountant()
            numerical.history = [history]
            return float(numerical.get_epsilon(delta))
        moments = RDPAccountant()
        moments.history = [history]
        return float(moments.get_epsilon(delta, alphas=_ORDERS))


def _check(noise_multiplier: float, sampling_rate: float, delta: float, accountant: str) -> None:
    if accountant not in ACCOUNTANTS:
        raise UnknownNameError("privacy accountant", accountant, ACCOUNTANTS)
    rules = (
        ("noise multiplier", noise_multiplier, f"0, or a finite number from {LEAST_NOISE:g}"),
        ("sampling rate", sampling_rate, "a probability, 0 to 1"),
        ("delta", delta, "above 0 and below 1"),
    )
    allowed = (
        noise_multiplier == 0 or LEAST_NOISE <= noise_multiplier < math.inf,
        0 <= sampling_rate <= 1,
        0 < delta < 1,
    )
    for (name, value, expected), is_allowed in zip(rules, allowed, strict=True):
        if not is_allowed:
            raise ConfigError(f"privacy accountant, {name}", "is out of bounds", got=value, expected=expected)
