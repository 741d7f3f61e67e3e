"""What happened inside an aggregate: how far it is from its clients' mean, and where its energy sits.

Only products count, so nothing here depends on how an update is factored, and nothing is multiplied out. Shares of
energy: `spectra`. Not here: scores on examples (`metrics`), pictures (`plots`).

Legend of dimensions: R rank, I inputs, O outputs. All arithmetic is float64.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite
from tasks.adapters.products import pair_norm, spectrum
from tasks.aggregators.fold import check_weight
from tasks.aggregators.stacks import ProductTerms, Term, stacked, weighted_mean
from tasks.errors import AdapterShapeError, EmptyCohortError, FoldOrderError
from tasks.evaluation.spectra import RankLevels, collapse_index, effective_rank, partition_energy, slot_energy

SPECTRUM_LENGTH = 64  # singular values kept per module: more than a picture shows


@dataclass(frozen=True)
class Diagnostics:
    """One round's aggregate, measured.

    Args:
        product_error: `||dW* - dW|| / ||dW*||` over all modules that a client trained, dW* the clients' weighted mean;
            0 if both are zero, None if there is no such ratio because only dW* is zero.
        coverage: Per rank slot, the owners' share of the weight; the mean over the modules that have the slot.
        coverage_by_module: Module path -> the same for one module; its contributors' weights add up to 1.
        partition_energy: "4-16" (slots, from 1) -> the energy's share between one rank in use and the next.
        slot_energy: Per singular value, largest first, its share of the energy, over all modules.
        collapse_index: Share of the energy beyond the smallest rank in use; near 0, larger clients' slots hold nothing.
        effective_rank: Over how many singular values the energy spreads, the mean over modules.
        spectra: Module path -> its largest singular values, at most SPECTRUM_LENGTH.
    """

    product_error: float | None
    coverage: tuple[float, ...]
    coverage_by_module: Mapping[str, tuple[float, ...]]
    partition_energy: Mapping[str, float]
    slot_energy: tuple[float, ...]
    collapse_index: float
    effective_rank: float
    spectra: Mapping[str, tuple[float, ...]]

    def to_metrics(self) -> dict[str, float]:
        """Return what is one number, under flat names of [a-z0-9_]; what has no value is left out."""
        found = {"collapse_index": self.collapse_index, "effective_rank": self.effective_rank}
        if self.product_error is not None:
            found["product_error"] = self.product_error
        if self.coverage:
            found["coverage_slot_min"] = min(self.coverage)
            found["coverage_slot_mean"] = _mean(self.coverage)
        return found | {_metric_name(slots): share for slots, share in self.partition_energy.items()}

    def to_json(self) -> dict[str, object]:
        """Return everything, under the fields' names, as values that JSON can hold."""
        return asdict(self)


class Observed:
    """What the clients of one round sent, gathered while their updates stream by.

    Memory is the sum of the clients' factors: the exact mean of products needs them all. Dense tensors are not kept.
    """

    def __init__(self) -> None:
        self._clients: dict[int, ProductTerms] = {}

    def add(self, update: LoraAdapter, weight: float, *, position: int | None = None) -> None:
        """Take in one client's update; its factors are copied, never written to.

        Args:
            update: Any scaling, ranks and float dtypes.
            weight: How much the client counts, > 0; only ratios matter.
            position: The client's place in sorted client order, which makes the diagnostics the same to the last bit
                for any order of arrival; after the last one so far if None.

        Raises:
            FoldOrderError: Another update has the position.
            InvalidWeightError: The weight is not a positive finite number.
            NonFiniteUpdateError: A factor holds NaN or infinity.
            AdapterShapeError: A module has rank 0.
        """
        place = max(self._clients, default=-1) + 1 if position is None else position
        subject = f"update {place}"
        if place in self._clients:
            raise FoldOrderError(subject, "was observed already", expected="one update a position")
        check_weight(weight, subject)
        factors = LoraAdapter(update.pairs)
        check_finite(factors, subject)
        terms = ProductTerms()
        terms.add(factors, weight, subject=subject)
        self._clients[place] = terms

    def modules(self) -> dict[str, list[Term]]:
        """Return every trained module's terms, in client order.

        Raises:
            EmptyCohortError: Nothing was observed.
        """
        if not self._clients:
            raise EmptyCohortError("diagnostics", "no update was observed")
        found: dict[str, list[Term]] = {}
        for place in sorted(self._clients):
            for path, terms in self._clients[place].modules.items():
                found.setdefault(path, []).extend(terms)
        return dict(sorted(found.items()))


def diagnose(observed: Observed, result: LoraAdapter, rank_levels: RankLevels) -> Diagnostics:
    """Measure an aggregate against what its clients sent.

    The product error is the norm of a difference that is itself one pair of stacked factors (QR, then a small core), so
    an exact method comes out at rounding level. For methods that do not aim at the clients' mean (owners' means,
    changes added to the previous adapter) it says how far they are from that mean, not how wrong they are. Modules
    that no client trained are in no error and no coverage.

    Args:
        observed: What the clients sent; can be used again.
        result: The new global adapter, any scaling; its modules have a [R, I], b [O, R].
        rank_levels: The ranks in use.

    Returns:
        The round's diagnostics. Coverage reaches to the largest rank in use, 0 where no client of the round owned it.

    Raises:
        EmptyCohortError: Nothing was observed, or there are no rank levels.
        AdapterShapeError: Sizes of one module differ between clients or from the result's.
        NonFiniteUpdateError: The result holds NaN or infinity.

    Invariants:
        Only ratios of weights and only products count. One factor on all updates and the result changes nothing but
        the spectra. Equal ranks -> coverage 1. Shares of energy add up to 1, unless the adapter is zero.

    References:
        The measures follow from the methods' definitions (see `tasks.aggregators`); the collapse index and the
        effective rank have their sources at `tasks.evaluation.spectra`.
    """
    if not rank_levels:
        raise EmptyCohortError("diagnostics", "there are no rank levels", expected="the ranks in use")
    modules = observed.modules()
    check_finite(LoraAdapter(result.pairs), "aggregate")
    spectra = {path: spectrum(pair).numpy() for path, pair in result.pairs.items()}
    coverage = {path: _coverage(terms, path, rank_levels) for path, terms in modules.items()}
    return Diagnostics(
        product_error=_product_error(modules, result),
        coverage=_mean_by_slot(coverage.values()),
        coverage_by_module=coverage,
        partition_energy=partition_energy(spectra, rank_levels),
        slot_energy=slot_energy(spectra),
        collapse_index=collapse_index(spectra, rank_levels),
        effective_rank=_mean([effective_rank(sigma) for sigma in spectra.values()]),
        spectra={path: tuple(map(float, sigma[:SPECTRUM_LENGTH])) for path, sigma in spectra.items()},
    )


def _product_error(modules: Mapping[str, Sequence[Term]], result: LoraAdapter) -> float | None:
    errors, targets = [], []
    for path, terms in modules.items():
        pair = result.pairs.get(path)
        _check_sizes(path, [term.pair for term in terms] + ([pair] if pair else []))
        mean = weighted_mean(terms)
        targets.append(pair_norm(mean))
        errors.append(pair_norm(stacked([mean, _negative(pair)])) if pair else targets[-1])
    error, target = math.hypot(*errors), math.hypot(*targets)
    if not error:
        return 0.0
    ratio = error / target if target else math.inf
    return ratio if math.isfinite(ratio) else None


def _negative(pair: LoraPair) -> LoraPair:
    return replace(pair, b=pair.b.double() * -pair.scaling, scaling=1.0)


def _check_sizes(path: str, pairs: Sequence[LoraPair]) -> None:
    sizes = {(pair.b.shape[0], pair.a.shape[1]) for pair in pairs}
    if len(sizes) > 1:
        raise AdapterShapeError(f"module {path}", "outer sizes differ", got=f"[O, I] of {sorted(sizes)}")


def _coverage(terms: Sequence[Term], path: str, rank_levels: RankLevels) -> tuple[float, ...]:
    slots = max([term.pair.rank for term in terms] + [level.get(path, 0) for level in rank_levels])
    total = math.fsum(term.weight for term in terms)
    return tuple(math.fsum(t.weight for t in terms if t.pair.rank > slot) / total for slot in range(slots))


def _mean_by_slot(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(_mean([share for share in slot if share is not None]) for slot in zip_longest(*rows))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _metric_name(slots: str) -> str:
    padded = re.sub(r"\d+", lambda number: number[0].zfill(3), slots)
    return "energy_rank_" + padded.replace("-", "_").replace("+", "_up")
