"""Ranks as large as the global adapter's energy asks for: what holds nothing need not be trained or sent."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from tasks.errors import NonFiniteUpdateError
from tasks.options import Option
from tasks.rank_schedulers.decision import Bound, RankSignals

ENERGY_OPTIONS = (
    Option(
        name="energy_share",
        description="share of every module's energy that the next rank must be able to hold [fraction]",
        default=0.95,
        least=0.01,
    ),
    Option(
        name="headroom",
        description="slots beyond those, so that a rank that became too small grows again [slots]",
        default=1,
        most=4096.0,
        kind="count",
    ),
)


def energy(signals: RankSignals, *, energy_share: float, headroom: int) -> Mapping[str, Bound]:
    r"""Bound all clients by the slots that hold most of the global adapter's energy.

    For each module the smallest n with $\sum_{j \le n} \sigma_j^2 \ge \tau \sum_j \sigma_j^2$; the module that needs
    most decides.

    Args:
        signals: What is known; only the spectra count.
        energy_share: tau above [fraction].
        headroom: Slots added to what is needed [slots].

    Returns:
        The same bound for every client; none before the first round, or while the adapter is zero.

    Raises:
        NonFiniteUpdateError: A singular value is NaN or infinite.

    Invariants:
        Scaling a module's spectrum changes nothing; a larger share never lowers the bound. Singular values that are
        zero are never counted.

    References:
        Ours. Thresholds on energy are FLoRIST's (https://arxiv.org/abs/2506.09199, abstract only), which cuts what the
        server sends by them; here they choose what clients train next, hence the headroom. Slots of the widest module
        are taken for the client's rank: a module whose largest rank is below the run's gets fewer than it needs.
    """
    needed = {path: _num_needed(path, values, energy_share) for path, values in sorted(signals.spectra.items())}
    widest = max(needed, key=lambda path: needed[path], default=None)
    if widest is None or not needed[widest]:
        return {}
    reason = f"{needed[widest]} singular values hold {energy_share:.4g} of the energy of {widest}, {headroom} to grow"
    return dict.fromkeys(sorted(signals.ranks), Bound(needed[widest] + headroom, reason))


def _num_needed(path: str, values: Sequence[float], share: float) -> int:
    if not all(math.isfinite(value) for value in values):
        raise NonFiniteUpdateError(f"module {path}, spectrum", "is not finite", got=list(values))
    sums = list(accumulate(_energies(values)))
    return 1 + bisect_left(sums, share * sums[-1]) if sums and sums[-1] else 0


def _energies(values: Sequence[float]) -> list[float]:
    # Relative to the largest, so that no square overflows or vanishes.
    largest = max(values, default=0.0) or 1.0
    return [(value / largest) ** 2 for value in values]
