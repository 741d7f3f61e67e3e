"""Where an adapter's energy sits: over its singular values, and between the ranks in use.

Energy is the sum of squared singular values of the updates. Every function takes spectra, module path -> [K] singular
values, largest first (`tasks.adapters.products.spectrum`), K = min(O, I, R): what they say depends on products, never
on how those are factored. Shares of nothing, an adapter that is zero, are 0.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import numpy as np

RankLevels = Sequence[Mapping[str, int]]
"""Module path -> rank, one per rank in use; order and repetitions do not matter.

They cut each module's spectrum at its own ranks: the h-th smallest rank of every module belong together, and are named
by the largest of them. A level without a module is read as the module's smallest; modules in no level are left out.
"""


def effective_rank(sigma: Sequence[float] | np.ndarray) -> float:
    r"""Return over how many singular values one module's energy spreads.

    $\exp(-\sum_i p_i \ln p_i)$ with $p_i = \sigma_i^2 / \sum_j \sigma_j^2$.

    Args:
        sigma: [K] singular values.

    Returns:
        From 1 (one value holds everything) to K (all are equal); 0 if there are none but zeros.

    References:
        O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007 (recalled, not
        read again). There p is a share of the singular values, here of their squares, as everywhere in this module;
        ours is never the larger one.
    """
    values = np.asarray(sigma, dtype=np.float64)
    values = values[values > 0]
    if not len(values):
        return 0.0
    squares = (values / values.max()) ** 2  # by the largest first: squares of small values would vanish
    p = squares / squares.sum()
    return math.exp(-math.fsum(p[p > 0] * np.log(p[p > 0])))


def slot_energy(spectra: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Return the share of the energy in the first singular values of all modules, in the second ones, and so on.

    Args:
        spectra: Module path -> [K].

    Returns:
        As many shares as the longest spectrum has values.
    """
    return _shares([math.fsum(slot) for slot in zip_longest(*_energies(spectra).values(), fillvalue=0.0)])


def partition_energy(spectra: Mapping[str, np.ndarray], rank_levels: RankLevels) -> dict[str, float]:
    """Return the share of the energy between one rank in use and the next, over all modules.

    Args:
        spectra: Module path -> [K].
        rank_levels: The ranks in use.

    Returns:
        Slots, counted from 1, -> share, e.g. {"1-3": 0.8, "4-16": 0.2}; "17+" is what lies beyond the largest rank,
        there only if a spectrum is that long.
    """
    energies, cuts = _energies(spectra), _cuts(spectra, rank_levels)
    if not cuts:
        return {}
    start, first, sums = dict.fromkeys(cuts[0], 0), 1, {}
    for last, stop in {max(cut.values()): cut for cut in cuts}.items():
        sums[f"{first}-{last}"] = math.fsum(energies[path][start[path] : stop[path]].sum() for path in stop)
        first, start = last + 1, stop
    if any(len(energies[path]) > start[path] for path in start):
        sums[f"{first}+"] = math.fsum(energies[path][start[path] :].sum() for path in start)
    return dict(zip(sums, _shares(list(sums.values())), strict=True))


def collapse_index(spectra: Mapping[str, np.ndarray], rank_levels: RankLevels) -> float:
    r"""Return the share of the energy beyond the smallest rank in use.

    $1 - \sum_{i \le r_{min}} \sigma_i^2 / \sum_i \sigma_i^2$: sums over all modules, each with its own smallest rank.

    Args:
        spectra: Module path -> [K].
        rank_levels: The ranks in use.

    Returns:
        0 (collapsed: the larger clients' slots hold nothing) to 1.

    References:
        After raFLoRA, https://arxiv.org/abs/2602.13486 (abstract and third-party notes read), which proves that this
        energy decays over rounds when low-rank clients dilute the larger slots. The index itself is ours.
    """
    energies, cuts = _energies(spectra), _cuts(spectra, rank_levels)
    smallest = cuts[0] if cuts else {}
    total = math.fsum(energies[path].sum() for path in smallest)
    return math.fsum(energies[path][rank:].sum() for path, rank in smallest.items()) / total if total else 0.0


def _energies(spectra: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return squared singular values, in units of the largest one of all modules."""
    peak = max((float(sigma.max(initial=0.0)) for sigma in spectra.values()), default=0.0) or 1.0
    return {path: (sigma / peak) ** 2 for path, sigma in spectra.items()}


def _cuts(paths: Iterable[str], rank_levels: RankLevels) -> list[dict[str, int]]:
    """Return, for each distinct level, where it cuts every module, smallest first."""
    levels = list({tuple(sorted(level.items())): level for level in rank_levels}.values())
    columns = {}
    for path in paths:
        ranks = sorted(level[path] for level in levels if level.get(path))
        if ranks:
            columns[path] = ranks[:1] * (len(levels) - len(ranks)) + ranks
    return [{path: ranks[h] for path, ranks in columns.items()} for h in range(len(levels))] if columns else []


def _shares(energies: Sequence[float]) -> tuple[float, ...]:
    total = math.fsum(energies)
    return tuple(energy / total if total else 0.0 for energy in energies)
