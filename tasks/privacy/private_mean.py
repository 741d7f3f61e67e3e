"""The mean of clipped changes under Gaussian noise: a fold that hides whether any one client took part.

Legend: S clipping norm, z noise multiplier, q sampling rate, N clients in all.
"""

from functools import partial
from typing import Self

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.ordered import OrderedFold
from tasks.errors import EmptyCohortError, FoldOrderError
from tasks.privacy.clipping import Factors, Key, clip_factor, differences, joint_norm, shared_tensors
from tasks.privacy.release import Release, released

NAME = "private mean"


def private_mean(
    previous: LoraAdapter,
    *,
    expected_clients: float,
    clip_norm: float,
    noise_multiplier: float,
    entropy: np.random.Generator,
    noised: Factors = "both",
) -> "PrivateMean":
    r"""Add to the global adapter the clipped changes of the clients, and noise that hides each of them.

    $\theta' = \theta + \frac{1}{qN}\left(\sum_i \delta_i \min(1, S/\|\delta_i\|_2) + \mathcal N(0, z^2 S^2)\right)$,
    $\delta_i$ being what client i returned less what it was sent. The norm is one over all it trained: both factors of
    all modules, scaling folded, and the dense tensors.

    Every client counts alike: weights given are ignored, as how many examples a client holds would move the sum by more
    than S. The denominator is fixed, as the number that took part tells of each of them. A client of lower rank is zero
    in the slots it lacks, and the noise goes to every slot, also where nobody trained: what one client can move is
    bounded over the whole padded vector, and slots without noise would tell who was there.

    Args:
        previous: The global adapter that clients were sent shares of: its first slots, at any ranks. What a codec
            rounds away on the way counts as a client's change.
        expected_clients: q N, clients per round on average, above 0.
        clip_norm: S, above 0; infinity only without noise.
        noise_multiplier: z, 0 or more.
        entropy: Where the noise comes from; seeded from the operating system, never from the run's seed, which others
            know. Advanced when the fold is finished.
        noised: The factors that cross the link. The other one has no change and must get no noise; it stays the
            previous adapter's, whatever updates hold, as do dense tensors of whole numbers.

    Returns:
        An empty fold. Finished without a single update it gives the previous adapter and noise, as an empty round must
        look like any other. The result has the previous ranks and dtypes, summed in float64.

    Raises:
        ConfigError: A number is out of its bounds.
        AdapterShapeError: While folding: an update is not a part of the previous adapter.
        NonFiniteUpdateError: While folding: a value is NaN or infinite.
        FoldOrderError: While folding: out of order, finished twice (which would spend twice), or over another adapter.

    Invariants:
        z = 0, S infinite, everyone there -> the previous adapter and the mean of padded changes. One client more or
        less moves the sum by at most S. If nobody learns and z = 0, nothing changes.

    References:
        H. Brendan McMahan, Daniel Ramage, Kunal Talwar, Li Zhang, "Learning Differentially Private Recurrent Language
        Models", ICLR 2018, arXiv 1710.06963: flat clipping and the fixed denominator, recalled and not re-read.
        We differ: no weights at all; padding to the largest rank is our derivation. Noise in both factors multiplies
        in the product; with `noised="b"` it does not, see Sun et al., "Improving LoRA in Privacy-preserving Federated
        Learning", ICLR 2024, arXiv 2403.12313 (third-party notes read). The noise is drawn by a generator that is not
        cryptographic and in floating point, so it withstands neither an attacker who finds the generator's state nor
        one who reads the last bits.
    """
    release = Release(expected_clients, clip_norm, noise_multiplier, noised)
    return PrivateMean(previous, release, entropy)


class PrivateMean:
    """A `Fold`; see `private_mean`. Clients' norms, and how many were clipped, are not private and so not kept.

    Args:
        previous: The global adapter that clients were sent shares of.
        release: How their sum is made public.
        entropy: Where the noise comes from.
    """

    def __init__(self, previous: LoraAdapter, release: Release, entropy: np.random.Generator) -> None:
        self.release = release
        self._previous, self._entropy = previous, entropy
        self._is_finished = False
        start = partial(ClippedSum, previous, release)
        self._fold = OrderedFold(f"{NAME} {release}", start, partial(_read_out, release=release, entropy=entropy))

    def add(self, position: int, update: LoraAdapter, weight: float) -> None:
        """Take in one client's update.

        Args:
            position: The client's place in sorted client order, from 0.
            update: Finite, a part of the previous adapter; read, never kept.
            weight: Ignored, save that it must be a positive finite number.

        Raises:
            FoldOrderError: The position was passed already, or the fold is spent.
            InvalidWeightError: The weight is not a positive finite number.
            AdapterShapeError: The update is not a part of the previous adapter.
            NonFiniteUpdateError: A value is NaN or infinite.
        """
        self._fold.add(position, update, weight)

    def merge(self, other: Self) -> None:
        """Take over everything another fold has seen; its noise is never drawn.

        Args:
            other: A fold of the same release over the same adapter and other blocks; must not be used again.

        Raises:
            FoldOrderError: The releases, adapters or blocks do not allow it, or one of the folds is spent.
        """
        self._check_previous(other._previous)
        self._fold.merge(other._fold)

    def finish(self, previous: LoraAdapter | None) -> LoraAdapter:
        """Draw the noise, once, and return the new global adapter.

        Args:
            previous: The adapter the fold was made for, or None.

        Returns:
            Scaling 1; ranks and dtypes of the previous adapter.

        Raises:
            FoldOrderError: The fold is spent, or made for another adapter.
        """
        if self._is_finished:
            raise FoldOrderError(f"fold of {NAME}", "its noise was drawn already", expected="a new fold")
        if previous is not None:
            self._check_previous(previous)
        try:
            result = self._fold.finish(self._previous)
        except EmptyCohortError:
            nobody = ClippedSum(self._previous, self.release)
            result = _read_out(nobody, self._previous, release=self.release, entropy=self._entropy)
        self._is_finished = True
        return result

    def _check_previous(self, other: LoraAdapter) -> None:
        if not _is_same(self._previous, other):
            raise FoldOrderError(
                f"fold of {NAME}", "was made for another global adapter",
                expected="the adapter that this round's clients were sent shares of",
            )  # fmt: skip


class ClippedSum:
    """The sum of the clipped changes of some clients, in float64; its memory is that of the previous adapter.

    Args:
        previous: The global adapter that clients were sent shares of.
        release: What to clip, and at which norm.
    """

    def __init__(self, previous: LoraAdapter, release: Release) -> None:
        self._previous, self._release = previous, release
        shared = shared_tensors(previous, release.noised)
        self.totals: dict[Key, torch.Tensor] = {
            key: torch.zeros(tensor.shape, dtype=torch.float64) for key, (tensor, _) in shared.items()
        }

    def add(self, update: LoraAdapter, weight: float, *, subject: str) -> None:
        """Take in one update; the weight is ignored.

        Args:
            update: A part of the previous adapter, never written to.
            weight: Ignored.
            subject: Whom an error names.

        Raises:
            AdapterShapeError: The update is not a part of the previous adapter.
            NonFiniteUpdateError: A value is NaN or infinite.
        """
        del weight
        moved = differences(update, self._previous, self._release.noised, subject=subject)
        factor = clip_factor(joint_norm(moved.values()), self._release.clip_norm)
        for key, change in moved.items():
            self.totals[key][tuple(slice(size) for size in change.shape)] += change * factor

    def absorb(self, later: Self) -> None:
        """Take over the sum of later positions.

        Args:
            later: Given up.
        """
        for key, total in later.totals.items():
            self.totals[key] += total


def _read_out(
    gathered: ClippedSum, previous: LoraAdapter | None, *, release: Release, entropy: np.random.Generator
) -> LoraAdapter:
    return released(gathered.totals, previous or LoraAdapter({}), release, entropy)


def _is_same(one: LoraAdapter, other: LoraAdapter) -> bool:
    if one is other:
        return True
    mine, theirs = shared_tensors(one, "both"), shared_tensors(other, "both")
    return mine.keys() == theirs.keys() and all(_are_equal(*mine[key], *theirs[key]) for key in mine)


def _are_equal(one: torch.Tensor, scale: float, other: torch.Tensor, other_scale: float) -> bool:
    return scale == other_scale and one.dtype == other.dtype and torch.equal(one, other)
