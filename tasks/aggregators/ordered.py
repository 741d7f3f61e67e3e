"""Sums whose rounding does not depend on who arrived first or how the work was cut.

Floating-point addition is not associative, so the order is fixed by the clients' positions: BLOCK consecutive positions
are summed one after the other, and finished blocks are joined along a binary tree over block numbers, as carries run in
a binary counter. What is summed is not known here: anything with `add` and `absorb` will do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, Self, TypeVar

import torch

from tasks.adapters.lora import LoraAdapter, check_finite
from tasks.aggregators.fold import check_weight
from tasks.errors import EmptyCohortError, FoldOrderError

BLOCK = 64  # positions per block: one accumulator for most cohorts, and a tree can be cut at its multiples


class Partial(Protocol):
    """What a method has gathered from some updates."""

    def add(self, update: LoraAdapter, weight: float, *, subject: str) -> None:
        """Take in one update; on an error, leave everything as it was.

        Args:
            update: The update, never written to.
            weight: A positive finite weight.
            subject: Whom an error names.
        """
        ...

    def absorb(self, later: Self) -> None:
        """Take over what was gathered from later positions; `later` is given up.

        Args:
            later: Gathered from positions after all of this one's.
        """
        ...


PartialT = TypeVar("PartialT", bound=Partial)


@dataclass(frozen=True)
class _Open(Generic[PartialT]):
    """The block being filled, and the last position it took."""

    block: int
    position: int
    partial: PartialT


class OrderedFold(Generic[PartialT]):
    """A `Fold` over any kind of partial result, bit-identical for every arrival order and every cut of the tree.

    Memory is one partial result up to BLOCK clients and one more each time the number of blocks doubles.

    Args:
        name: The method; only folds of one name merge.
        start: Makes an empty partial result.
        read_out: Turns the joined partial result and the previous global adapter into the new one.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], PartialT],
        read_out: Callable[[PartialT, LoraAdapter | None], LoraAdapter],
    ) -> None:
        self._name, self._start, self._read_out = name, start, read_out
        self._open: _Open[PartialT] | None = None
        # (level, index) covers blocks index * 2**level up to the next index's; two of one level are joined at once.
        self._nodes: dict[tuple[int, int], PartialT] = {}
        self._is_spent = False

    def add(self, position: int, update: LoraAdapter, weight: float) -> None:
        """Take in one client's update.

        Args:
            position: The client's place in sorted client order, from 0; rising within each block of BLOCK.
            update: Finite factors, at any scaling; read, never kept.
            weight: How much the client counts, > 0; only ratios matter.

        Raises:
            FoldOrderError: The position was passed already, or the fold is spent.
            InvalidWeightError: The weight is not a positive finite number.
            AdapterShapeError: The update does not fit what came before it in its block.
        """
        self._check_usable()
        subject = f"update {position}"
        check_weight(weight, subject)
        block = position // BLOCK
        if self._open is not None and self._open.block != block:
            self._close()
        partial = self._open.partial if self._open is not None else self._start()
        if position < 0 or self._covers(0, block) or (self._open and position <= self._open.position):
            _out_of_order(subject, "its place has been passed", "positions from 0, rising within each block")
        partial.add(update, weight, subject=subject)
        self._open = _Open(block, position, partial)

    def merge(self, other: Self) -> None:
        """Take over everything another fold has seen.

        Args:
            other: A fold of the same method over other blocks; must not be used again.

        Raises:
            FoldOrderError: The methods differ, a block is in both (a cut must fall on a multiple of BLOCK), or one of
                the folds is spent.
            AdapterShapeError: Modules of the two do not fit together.
        """
        self._check_usable()
        other._check_usable()
        if other._name != self._name:
            _out_of_order(f"fold of {self._name}", "cannot merge another method", f"not {other._name}")
        self._close()
        other._close()
        for level, index in other._nodes:
            if self._covers(level, index):
                _out_of_order(
                    f"fold of {self._name}",
                    f"both folds hold updates from position {(index << level) * BLOCK} on",
                    f"work cut at multiples of {BLOCK} positions",
                )
        other._is_spent = True
        while other._nodes:
            node = min(other._nodes)
            self._settle(*node, other._nodes.pop(node))

    def finish(self, previous: LoraAdapter | None) -> LoraAdapter:
        """Return the new global adapter.

        Args:
            previous: The global adapter of the round before, or None.

        Returns:
            The new adapter, scaling 1.

        Raises:
            EmptyCohortError: No update was added.
            FoldOrderError: The fold is spent.
            NonFiniteUpdateError: The result holds NaN or infinity, because an update did.
        """
        self._check_usable()
        self._close()
        if not self._nodes:
            raise EmptyCohortError(f"fold of {self._name}", "there is nothing to aggregate")
        self._is_spent = True
        while len(self._nodes) > 1:
            # Whatever has no neighbour rises alone; the lowest first, so that its neighbour cannot still come.
            level, index = min(self._nodes)
            self._settle(level + 1, index // 2, self._nodes.pop((level, index)))
        result = self._read_out(self._nodes.popitem()[1], previous)
        if not _is_surely_finite(result):
            check_finite(result, f"aggregate by {self._name}")
        return result

    def _check_usable(self) -> None:
        if self._is_spent:
            _out_of_order(f"fold of {self._name}", "it was finished or merged away", "a new fold")

    def _close(self) -> None:
        if self._open is not None:
            self._settle(0, self._open.block, self._open.partial)
            self._open = None

    def _settle(self, level: int, index: int, partial: PartialT) -> None:
        while (neighbour := self._nodes.pop((level, index ^ 1), None)) is not None:
            first, later = (neighbour, partial) if index & 1 else (partial, neighbour)
            first.absorb(later)
            level, index, partial = level + 1, index // 2, first
        self._nodes[level, index] = partial

    def _covers(self, level: int, index: int) -> bool:
        """Tell whether any finished block lies under this node of the tree."""
        for own_level, own_index in self._nodes:
            top = max(level, own_level)
            if index >> (top - level) == own_index >> (top - own_level):
                return True
        return False


def _is_surely_finite(adapter: LoraAdapter) -> bool:
    # One sum per tensor is many times faster than a look at every number; a sum that overflows only means "look".
    tensors = [t for pair in adapter.pairs.values() for t in (pair.a, pair.b)]
    return all(bool(torch.isfinite(t.sum())) for t in [*tensors, *adapter.dense.values()])


def _out_of_order(subject: str, problem: str, expected: str) -> NoReturn:
    raise FoldOrderError(subject, problem, expected=expected)
