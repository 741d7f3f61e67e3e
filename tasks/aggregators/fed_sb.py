"""Fed-SB: two frozen factors for everyone, and the mean of the small cores between them."""

from typing import Self

import torch

from tasks.adapters.core import core_of, stray_share, with_core
from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, fold_scaling, layer_text, refuse_misfit
from tasks.aggregators.ffa import FrozenMeans
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import OrderedFold
from tasks.aggregators.running_means import ModuleMean
from tasks.aggregators.slot_means import read_out
from tasks.errors import FrozenFactorError

STRAY_LIMIT = 2.0**-7
"""How much of `b` may lie outside B0: rounding to bf16 alone takes 2^-9 of its norm there."""


def fed_sb() -> Fold:
    r"""Average every entry of the core over the clients that hold it.

    Clients share a frozen $a$ and, through it, a frozen B0; client k of rank R_k trains the leading $R_k \times R_k$
    block of one core. $\bar R_{ij} = \sum_{k: R_k > \max(i,j)} w_k R_{k,ij} / \sum_{k: R_k > \max(i,j)} w_k$, and the
    result is $B_0 \bar R a$.

    Returns:
        An empty fold. Its result has the largest rank seen per module (the previous adapter's included), the clients'
        `a` to the bit, the inputs' dtype; cores are read in float64 and accumulated in float32, or in float64 for
        float64 inputs.

    Raises:
        FrozenFactorError: While folding: the rows of `a` that two clients share differ, or a `b` is not B0 times a
            square matrix.
        AdapterShapeError: While folding: layer kinds or outer sizes of a module differ between clients.
        InvalidWeightError: While folding: a weight is not a positive finite number.
        NonFiniteUpdateError: While folding: a value is NaN or infinite; or at the end, where means overflow.

    Invariants:
        One client -> itself. Equal ranks -> the product is the weighted mean of the products. Clients that return what
        they were given -> the same product. A client of low rank moves no entry beyond its block.

    References:
        Fed-SB, https://arxiv.org/abs/2502.15436; the abstract alone was read, so this is inspired by it. We differ: its
        frozen factors come from a first full gradient (LoRA-SB), ours are random and orthonormal; it has one rank, and
        the leading blocks of clients of lower rank are ours. Modules and dense tensors nobody trained keep the
        previous value, and so do entries beyond the clients' ranks.
    """
    return OrderedFold("fed_sb", CoreMeans, _read_out_cores)


class CoreMeans:
    """Means over some updates on one frozen `a`, entry by entry of their cores.

    Entry (i, j) belongs to slot max(i, j), so a core is kept as slots and averaged as slots are: a column [2 O] of a
    slot holds its column of the core above the diagonal, then its row up to the diagonal.
    """

    def __init__(self) -> None:
        self.frozen = FrozenMeans()
        self.dtypes: dict[str, torch.dtype] = {}

    def add(self, update: LoraAdapter, weight: float, *, subject: str) -> None:
        """Take in one update.

        Args:
            update: Any scaling, ranks and float dtypes; never written to or kept.
            weight: A positive finite weight.
            subject: Whom an error names.

        Raises:
            FrozenFactorError: Its `a` is not the one of those before, or its `b` is no core's.
            AdapterShapeError: A module's layer or a dense tensor's shape differs from those before, or a rank is 0.
            NonFiniteUpdateError: A value is NaN or infinite.
        """
        check_finite(update, subject)
        with torch.no_grad():
            for path, pair in update.pairs.items():
                _check_layer(pair, self.frozen.means.modules.get(path), f"{subject}, module {path}")
                _check_core(pair, f"{subject}, module {path}")
            slots = {path: _as_slots(pair) for path, pair in update.pairs.items()}
            self.frozen.add(LoraAdapter(slots, update.dense), weight, subject=subject)
        self._widen({path: torch.promote_types(pair.a.dtype, pair.b.dtype) for path, pair in update.pairs.items()})

    def absorb(self, later: Self) -> None:
        """Take over the means of later positions.

        Args:
            later: Given up.

        Raises:
            FrozenFactorError: The two have different rows of `a`.
            AdapterShapeError: The two do not fit together.
        """
        self.frozen.absorb(later.frozen)
        self._widen(later.dtypes)

    def _widen(self, dtypes: dict[str, torch.dtype]) -> None:
        for path, dtype in dtypes.items():
            self.dtypes[path] = torch.promote_types(self.dtypes.get(path, dtype), dtype)


def _check_layer(pair: LoraPair, mean: ModuleMean | None, subject: str) -> None:
    """Raise with the layer's own sizes, where the means would name those of slots."""
    if mean is not None and (pair.form, 2 * pair.b.shape[0]) != (mean.form, mean.b.shape[0]):
        expected = layer_text(mean.form, mean.b.shape[0] // 2)
        refuse_misfit(subject, layer_text(pair.form, pair.b.shape[0]), expected)


def _check_core(pair: LoraPair, subject: str) -> None:
    stray = stray_share(pair)
    if stray > STRAY_LIMIT:
        raise FrozenFactorError(
            subject,
            "its factor b is not the frozen one times a core",
            got=f"{stray:.1%} of its norm lies outside",
            expected=f"at most {STRAY_LIMIT:.1%}",
            remedy="train cores alone on the factors that the run starts from, or aggregate with another method",
        )


def _as_slots(pair: LoraPair) -> LoraPair:
    core, outputs = core_of(pair), pair.b.shape[0]
    # Beyond O the rows of a core are zero, because the columns of B0 are: what is cut off here is nothing.
    columns = [_of_height(core.triu(1), outputs), _of_height(core.tril().T, outputs)]
    return LoraPair(pair.a, torch.cat(columns), 1.0, pair.form)


def _from_slots(slots: LoraPair, dtype: torch.dtype) -> LoraPair:
    outputs, rank = slots.b.shape[0] // 2, slots.rank
    core = _of_height(slots.b[:outputs], rank) + _of_height(slots.b[outputs:], rank).T
    pair = with_core(LoraPair(slots.a, slots.b[:outputs], 1.0, slots.form), core)
    return LoraPair(pair.a.to(dtype), pair.b.to(dtype), 1.0, slots.form)


def _of_height(matrix: torch.Tensor, height: int) -> torch.Tensor:
    result = matrix.new_zeros(height, matrix.shape[1])
    shared = min(height, len(matrix))
    result[:shared] = matrix[:shared]
    return result


def _read_out_cores(gathered: CoreMeans, previous: LoraAdapter | None) -> LoraAdapter:
    means, old = gathered.frozen.means, LoraAdapter({}) if previous is None else fold_scaling(previous)
    trained = list(means.modules)
    with torch.no_grad():
        held = {path: old.pairs[path] for path in trained if path in old.pairs}
        for path, pair in held.items():
            _check_layer(pair, means.modules[path], f"previous adapter, module {path}")
        result = read_out(means, LoraAdapter({path: _as_slots(pair) for path, pair in held.items()}, old.dense))
        pairs = {path: _from_slots(result.pairs[path], gathered.dtypes[path]) for path in trained}
    return LoraAdapter({**old.pairs, **pairs}, result.dense)
