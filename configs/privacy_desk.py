"""From a config to privacy: who is drawn, the noised mean, and what of the budget is spent."""

import os
from dataclasses import dataclass

import numpy as np

from configs.workbench import Workbench
from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.fold import Fold
from tasks.errors import ConfigError
from tasks.privacy.accountant import epsilon
from tasks.privacy.private_mean import private_mean


@dataclass(frozen=True)
class PrivacyDesk:
    """Where privacy is looked after; nothing to do in runs that ask for none.

    What was spent follows from the number of rounds that made an adapter, so nothing needs to be kept.

    Args:
        bench: The run.
    """

    bench: Workbench

    @property
    def is_on(self) -> bool:
        """Whether the run hides its clients."""
        return self.bench.config.privacy.mode == "clients"

    @property
    def rate(self) -> float:
        """Probability that a client is invited to a round."""
        wanted, everyone = self.bench.config.cohort.cohort_size, len(self.bench.clients)
        return min(1.0, wanted / everyone) if wanted else 1.0

    @property
    def grace_s(self) -> float:
        """How long a round waits once quorum is there; one that hides its clients waits to its deadline [s]."""
        cohort = self.bench.config.cohort
        return cohort.deadline_s if self.is_on else cohort.grace_s

    def check(self) -> None:
        """Refuse a budget that the first round would break, or that cannot be told, before anything is trained.

        Raises:
            ConfigError: It would, or Opacus is not installed.
        """
        if not self.is_on:
            return
        first = self.spent(1)
        if not self.allows(1):
            raise ConfigError(
                "privacy.target_epsilon",
                "one round alone would spend more",
                got=self.bench.config.privacy.target_epsilon,
                expected=f"at least {first:.3g}",
                remedy="raise privacy.noise_multiplier, or lower cohort.cohort_size",
            )

    def spent(self, rounds: int) -> float:
        """Return the epsilon of so many rounds."""
        privacy = self.bench.config.privacy
        return epsilon(
            noise_multiplier=privacy.noise_multiplier,
            sampling_rate=self.rate,
            steps=rounds,
            delta=privacy.delta,
        )

    def allows(self, rounds: int) -> bool:
        """Tell whether so many rounds stay within the budget."""
        limit = self.bench.config.privacy.target_epsilon
        return not self.is_on or not limit or self.spent(rounds) <= limit

    def figures(self, rounds: int) -> dict[str, float]:
        """Return what to log after so many rounds; nothing in runs that hide nobody."""
        return {"epsilon": self.spent(rounds)} if self.is_on else {}

    def fold(self, previous: LoraAdapter) -> Fold:
        """Start a private aggregation.

        Args:
            previous: The adapter that shares were cut from.
        """
        privacy = self.bench.config.privacy
        return private_mean(
            previous,
            expected_clients=self.rate * len(self.bench.clients),
            clip_norm=privacy.clip_norm,
            noise_multiplier=privacy.noise_multiplier,
            entropy=np.random.default_rng(int.from_bytes(os.urandom(32), "big")),
            noised=self.bench.aggregator.noised,
        )
