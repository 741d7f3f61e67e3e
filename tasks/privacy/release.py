"""How a sum over clients becomes public: divided by a number that tells of nobody, under Gaussian noise.

Legend: S clipping norm, z noise multiplier, q sampling rate, N clients in all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.errors import ConfigError
from tasks.privacy.clipping import Factors, Key


@dataclass(frozen=True)
class Release:
    """How a sum over clients is made public.

    Args:
        expected_clients: q N, clients per round on average; the fixed denominator.
        clip_norm: S, the most that one client can move the sum.
        noise_multiplier: z, standard deviation of the sum's noise over S.
        noised: The factors that cross the link.

    Raises:
        ConfigError: A number is out of its bounds.
    """

    expected_clients: float
    clip_norm: float
    noise_multiplier: float
    noised: Factors

    def __post_init__(self) -> None:
        rules = (
            ("expected clients", self.expected_clients, 0 < self.expected_clients < math.inf, "a number above 0"),
            ("clipping norm", self.clip_norm, self.clip_norm > 0, "a number above 0"),
            ("noise multiplier", self.noise_multiplier, 0 <= self.noise_multiplier < math.inf, "0 or more"),
        )
        for name, value, is_allowed, expected in rules:
            if not is_allowed:
                raise ConfigError(f"private mean, {name}", "is out of bounds", got=value, expected=expected)
        if self.noise_multiplier and math.isinf(self.clip_norm):
            raise ConfigError("private mean, clipping norm", "must be finite where there is noise", got=self.clip_norm)

    @property
    def sum_std(self) -> float:
        """Standard deviation of the noise on the sum, z S."""
        return self.noise_multiplier * self.clip_norm if self.noise_multiplier else 0.0

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in every number of the result, z S / (q N)."""
        return self.sum_std / self.expected_clients


def released(
    totals: Mapping[Key, torch.Tensor], previous: LoraAdapter, release: Release, entropy: np.random.Generator
) -> LoraAdapter:
    """Add a sum of clipped changes and its noise, over the expected number of clients, to the global adapter.

    Args:
        totals: Key -> sum over clients, float64, in the previous adapter's shape; what has no key is kept as it is.
        previous: The global adapter, any scaling; never written to.
        release: How to make the sum public.
        entropy: Where the noise comes from; advanced by one draw for every number of the totals.

    Returns:
        Scaling 1; ranks and dtypes of the previous adapter.
    """
    folded = fold_scaling(previous)
    moved = {key: _noised(total, release.sum_std, entropy) / release.expected_clients for key, total in totals.items()}
    pairs = {path: _moved_pair(pair, path, moved) for path, pair in folded.pairs.items()}
    dense = {name: _moved(tensor, moved.get((name, "dense"))) for name, tensor in folded.dense.items()}
    return LoraAdapter(pairs, dense)


def _noised(total: torch.Tensor, std: float, entropy: np.random.Generator) -> torch.Tensor:
    if not std:
        return total
    # Of a scalar numpy makes a number, which torch would not take for an array.
    return total + torch.from_numpy(np.asarray(entropy.standard_normal(tuple(total.shape)) * std))


def _moved_pair(pair: LoraPair, path: str, moved: Mapping[Key, torch.Tensor]) -> LoraPair:
    return replace(pair, a=_moved(pair.a, moved.get((path, "a"))), b=_moved(pair.b, moved.get((path, "b"))))


def _moved(tensor: torch.Tensor, change: torch.Tensor | None) -> torch.Tensor:
    return tensor if change is None else (tensor.detach().to(torch.float64) + change).to(tensor.dtype)
