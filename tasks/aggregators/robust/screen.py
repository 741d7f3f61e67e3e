"""Looking at all updates before any is averaged: what a robust rule is, and the fold that applies one.

A rule decides what an aggregator gets to see; it never averages in the aggregator's place, so any two combine. Every
rule has to see every update, so memory is the sum of the clients' adapters, and sums under encryption are out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NoReturn, Self

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, layer_text, refuse_misfit
from tasks.aggregators.fold import Fold, check_weight
from tasks.errors import AdapterShapeError, EmptyCohortError, FoldOrderError, NonFiniteUpdateError

LARGEST_NORM = 1e100  # squares of norms, and their sums over a cohort, must stay finite in float64
ALONE = "kept as it is: one update alone cannot be compared with any other"


@dataclass(frozen=True, eq=False)
class Screened:
    """What an aggregator is to see instead of what the clients sent.

    Args:
        updates: One or more, in the clients' order where they are still the clients'; any scaling.
        weights: One per update, > 0.
        notes: Index of a client -> what was done to it; clients that were left alone are not named.
    """

    updates: tuple[LoraAdapter, ...]
    weights: tuple[float, ...]
    notes: Mapping[int, str] = field(default_factory=dict)


Screen = Callable[[Sequence[LoraAdapter], Sequence[float]], Screened]
"""(finite updates of one model in client order, their weights) -> what to aggregate; writes to neither."""


class ScreenedFold:
    """A `Fold` that gathers all updates, has a rule look at them together, and hands the rest to an aggregator.

    The rule sees the updates by position, so the result is bit-identical for every arrival order and every cut of the
    tree. A single update passes as it is: no rule can judge it.

    Args:
        inner: Makes an empty fold of the aggregator.
        screen: The rule.
    """

    def __init__(self, inner: Callable[[], Fold], screen: Screen) -> None:
        self._inner, self._screen = inner, screen
        self._entries: dict[int, tuple[LoraAdapter, float]] = {}
        self._notes: dict[int, str] = {}
        self._is_spent = False

    @property
    def notes(self) -> Mapping[int, str]:
        """What the rule did: position -> in words; empty before the end, and for clients left alone."""
        return MappingProxyType(self._notes)

    def add(self, position: int, update: LoraAdapter, weight: float) -> None:
        """Take in a copy of one client's update.

        Args:
            position: The client's place in sorted client order, from 0; in any order.
            update: Finite factors, at any scaling; read, never kept.
            weight: How much the client counts, > 0; only ratios matter.

        Raises:
            FoldOrderError: The position is negative or taken, or the fold is spent.
            InvalidWeightError: The weight is not a positive finite number.
            NonFiniteUpdateError: A tensor holds NaN or infinity, or numbers whose squares would become infinite.
            AdapterShapeError: A module has rank 0.
        """
        self._check_usable()
        subject = f"update {position}"
        if position < 0 or position in self._entries:
            _refuse(subject, "its place cannot be taken", "positions from 0, each once")
        check_weight(weight, subject)
        check_finite(update, subject)
        _check_measurable(update, subject)
        self._entries[position] = (_copy(update), weight)

    def merge(self, other: Self) -> None:
        """Take over everything another fold has seen.

        Args:
            other: A fold of the same aggregator and rule over other positions; must not be used again.

        Raises:
            FoldOrderError: A position is in both folds, or one of them is spent.
        """
        self._check_usable()
        other._check_usable()
        shared = self._entries.keys() & other._entries.keys()
        if shared or other is self:
            taken = ", ".join(map(str, sorted(shared)))
            _refuse("screened fold", f"both folds hold positions {taken}", "each position in one fold")
        self._entries |= other._entries
        other._is_spent = True

    def finish(self, previous: LoraAdapter | None) -> LoraAdapter:
        """Screen what was gathered and aggregate what is left.

        Args:
            previous: The global adapter of the round before; what no client trained is kept from it.

        Returns:
            The aggregator's result, scaling 1; `notes` then says what the rule did.

        Raises:
            EmptyCohortError: No update was added.
            FoldOrderError: The fold is spent.
            AdapterShapeError: A layer or dense tensor differs in shape between updates.
            ConfigError: The rule needs more updates than there are.
        """
        self._check_usable()
        if not self._entries:
            raise EmptyCohortError("screened fold", "there is nothing to aggregate")
        self._is_spent = True
        positions = sorted(self._entries)
        entries = [self._entries.pop(position) for position in positions]
        _check_alike(dict(zip(positions, (update for update, _ in entries), strict=True)))
        screened = self._screened([update for update, _ in entries], [weight for _, weight in entries])
        self._notes = {positions[index]: note for index, note in sorted(screened.notes.items())}
        fold = self._inner()
        for place, (update, weight) in enumerate(zip(screened.updates, screened.weights, strict=True)):
            fold.add(place, update, weight)
        return fold.finish(previous)

    def _screened(self, updates: Sequence[LoraAdapter], weights: Sequence[float]) -> Screened:
        if len(updates) == 1:
            return Screened(tuple(updates), tuple(weights), {0: ALONE})
        with torch.no_grad():
            return self._screen(updates, weights)

    def _check_usable(self) -> None:
        if self._is_spent:
            _refuse("screened fold", "it was finished or merged away", "a new fold")


def _copy(update: LoraAdapter) -> LoraAdapter:
    pairs = {path: replace(p, a=_own(p.a), b=_own(p.b)) for path, p in update.pairs.items()}
    return LoraAdapter(pairs, {name: _own(tensor) for name, tensor in update.dense.items()})


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _check_measurable(update: LoraAdapter, subject: str) -> None:
    sizes = {f"module {path}": _size_bound(pair, f"{subject}, module {path}") for path, pair in update.pairs.items()}
    sizes |= {f"tensor {name}": _norm(t) for name, t in update.dense.items() if t.is_floating_point()}
    for name, size in sizes.items():
        if not size <= LARGEST_NORM:
            raise NonFiniteUpdateError(
                f"{subject}, {name}",
                "is too large to be compared with the others",
                got=f"a norm of up to {size:.3g}",
                expected=f"at most {LARGEST_NORM:g}",
                remedy="lower the learning rate or clip gradients",
            )


def _size_bound(pair: LoraPair, subject: str) -> float:
    if not pair.rank:
        raise AdapterShapeError(subject, "has rank 0", expected="rank 1 or more")
    return abs(pair.scaling) * _norm(pair.a) * _norm(pair.b)


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _check_alike(updates: Mapping[int, LoraAdapter]) -> None:
    known: dict[str, str] = {}
    for position, update in updates.items():
        for name, shape in _shapes(update).items():
            if known.setdefault(name, shape) != shape:
                refuse_misfit(f"update {position}, {name}", shape, known[name])


def _shapes(update: LoraAdapter) -> dict[str, str]:
    layers = {f"module {path}": layer_text(pair.form, pair.b.shape[0]) for path, pair in update.pairs.items()}
    dense = {
        f"tensor {name}": f"{'numbers' if t.is_floating_point() else 'counts'} of shape {list(t.shape)}"
        for name, t in update.dense.items()
    }
    return {**layers, **dense}


def _refuse(subject: str, problem: str, expected: str) -> NoReturn:
    raise FoldOrderError(subject, problem, expected=expected)
