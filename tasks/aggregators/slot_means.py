"""Running means of whole adapters, slot by slot: the one accumulator behind every method that averages factors.

How a method treats slots that few clients own is not decided here: `read_out` takes it as a function.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Self

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.aggregators.running_means import (
    DenseMean,
    ModuleMean,
    check_dense_fit,
    check_modules_fit,
    join_dense,
    join_module,
    lend_dense,
    lend_module,
    own_dense,
    own_module,
    with_tail,
)
from tasks.errors import AdapterShapeError

SlotFactor = Callable[[np.ndarray], np.ndarray]


class SlotMeans:
    """Weighted means over some updates; modules and dense tensors are averaged over the clients that sent them.

    Memory is one adapter of the largest ranks seen.
    """

    def __init__(self) -> None:
        self.modules: dict[str, ModuleMean] = {}
        self.dense: dict[str, DenseMean] = {}

    def add(self, update: LoraAdapter, weight: float, *, subject: str) -> None:
        """Take in one update.

        Args:
            update: Any scaling, ranks and float dtypes; never written to or kept.
            weight: A positive finite weight.
            subject: Whom an error names.

        Raises:
            AdapterShapeError: A module's layer or a dense tensor's shape differs from those before, or a rank is 0.
        """
        with torch.no_grad():
            modules = {path: lend_module(pair, weight) for path, pair in update.pairs.items()}
            dense = {name: lend_dense(tensor, weight) for name, tensor in update.dense.items()}
            self._check_fit(modules, dense, subject)
            for path, module in modules.items():
                if path in self.modules:
                    join_module(self.modules[path], module)
                else:
                    self.modules[path] = own_module(module)
            for name, tensor in dense.items():
                if name in self.dense:
                    join_dense(self.dense[name], tensor)
                else:
                    self.dense[name] = own_dense(tensor)

    def absorb(self, later: Self) -> None:
        """Take over the means of later positions.

        Args:
            later: Given up; its tensors may become this one's.

        Raises:
            AdapterShapeError: The two do not fit together.
        """
        self._check_fit(later.modules, later.dense, "a later block of updates")
        for path, module in later.modules.items():
            if self.modules.setdefault(path, module) is not module:
                join_module(self.modules[path], module)
        for name, tensor in later.dense.items():
            if self.dense.setdefault(name, tensor) is not tensor:
                join_dense(self.dense[name], tensor)

    def _check_fit(self, modules: Mapping[str, ModuleMean], dense: Mapping[str, DenseMean], subject: str) -> None:
        for path, module in modules.items():
            if not len(module.weights):
                raise AdapterShapeError(f"{subject}, module {path}", "has rank 0", expected="rank 1 or more")
            if path in self.modules:
                check_modules_fit(module, self.modules[path], f"{subject}, module {path}")
        for name, tensor in dense.items():
            if name in self.dense:
                check_dense_fit(tensor, self.dense[name], f"{subject}, tensor {name}")


def read_out(means: SlotMeans, previous: LoraAdapter | None, slot_factor: SlotFactor | None = None) -> LoraAdapter:
    """Turn means into an adapter; slots, modules and dense tensors nobody trained keep the previous value.

    Args:
        means: Given up; its tensors may become the result's.
        previous: The global adapter of the round before, any scaling.
        slot_factor: Weight seen per slot [R], 0 where the previous value was kept -> what to multiply both factors of
            each slot by [R]; None leaves them alone.

    Returns:
        Scaling 1; rank per module the largest seen, the previous one's included; the clients' dtype.

    Raises:
        AdapterShapeError: The previous adapter holds a module or tensor of the same name and other sizes.
    """
    old = LoraAdapter({}) if previous is None else fold_scaling(previous)
    with torch.no_grad():
        pairs = {
            path: _as_pair(_extended(mean, old.pairs.get(path), path), slot_factor)
            for path, mean in means.modules.items()
        }
        dense = {name: _as_tensor(mean, old.dense.get(name), name) for name, mean in means.dense.items()}
    return LoraAdapter({**old.pairs, **pairs}, {**old.dense, **dense})


def _extended(mean: ModuleMean, old: LoraPair | None, path: str) -> ModuleMean:
    """Add the previous adapter's slots that nobody owned, with weight 0."""
    if old is None:
        return mean
    check_modules_fit(lend_module(old, 0.0), mean, f"previous adapter, module {path}")
    missing = old.rank - len(mean.weights)
    if missing <= 0:
        return mean
    a, b = with_tail(mean.a, old.a, dim=0), with_tail(mean.b, old.b, dim=1)
    return replace(mean, a=a, b=b, weights=np.concatenate([mean.weights, np.zeros(missing)]))


def _as_pair(mean: ModuleMean, slot_factor: SlotFactor | None) -> LoraPair:
    a, b = mean.a, mean.b
    if slot_factor is not None:
        factor = torch.from_numpy(slot_factor(mean.weights)).to(a.dtype)
        a, b = a.mul_(factor[:, None]), b.mul_(factor)
    return LoraPair(a.to(mean.dtype), b.to(mean.dtype), 1.0, mean.form)


def _as_tensor(mean: DenseMean, old: torch.Tensor | None, name: str) -> torch.Tensor:
    if old is not None:
        check_dense_fit(lend_dense(old, 0.0), mean, f"previous adapter, tensor {name}")
    return mean.value.to(mean.dtype)
