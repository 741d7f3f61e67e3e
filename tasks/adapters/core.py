"""Cores: pairs whose `a` never changes and whose `b` is a frozen matrix times a small square one, `b = B0 R`.

Only the core R has to cross a link. B0 is drawn from the signs of the first row of `a`, so whoever holds `a` holds B0
too, at every rank and after any cast; nothing has to be kept beside the pair, which is a plain one for everybody else.

Legend of dimensions: R rank, I inputs (flattened), O outputs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling, prefix
from tasks.errors import ModelError


def frozen_b(a: torch.Tensor, outputs: int) -> torch.Tensor:
    """Draw the frozen left matrix B0 that belongs to a frozen `a`.

    Args:
        a: [R, I]; only how many rows it has and the signs of the first one count.
        outputs: O.

    Returns:
        [O, R] float64 on the CPU, the first O columns orthonormal, any further ones zero. The one for the first rows of
        `a` is its first columns, bit for bit.
    """
    signs = np.packbits(torch.signbit(a[:1].detach()).cpu().numpy())
    return torch.from_numpy(_orthonormal_rows(len(a), outputs, _seed(signs.tobytes()))).T


def core_of(pair: LoraPair) -> torch.Tensor:
    r"""Read the core out of a pair, $R = B_0^\top b$ with the scale folded in.

    Args:
        pair: Any scaling; what its `b` holds outside the columns of B0 is left out.

    Returns:
        [R, R], float32 or better, computed in float64.
    """
    core = pair.scaling * (frozen_b(pair.a, pair.b.shape[0]).T @ pair.b.detach().double().cpu())
    return core.to(torch.promote_types(pair.b.dtype, torch.float32))


def with_core(pair: LoraPair, core: torch.Tensor) -> LoraPair:
    """Put a core between a pair's `a` and the B0 that belongs to it.

    Args:
        pair: Says `a`, outer size and form; its `b` is not looked at.
        core: [R, R].

    Returns:
        The pair with `b = B0 R` in the core's dtype, scaling 1.
    """
    b = frozen_b(pair.a, pair.b.shape[0]) @ core.double()
    return replace(pair, b=b.to(core.dtype), scaling=1.0)


def stray_share(pair: LoraPair) -> float:
    """Say how much of a pair's `b` no core can express.

    Args:
        pair: Any scaling.

    Returns:
        Norm of what lies outside the columns of B0 over the norm of `b`: 0 for every core, 0 for a `b` of zeros.
    """
    basis, b = frozen_b(pair.a, pair.b.shape[0]), pair.b.detach().double().cpu()
    norm = float(torch.linalg.matrix_norm(b))
    return float(torch.linalg.matrix_norm(b - basis @ (basis.T @ b))) / norm if norm else 0.0


def leading_cores(adapter: LoraAdapter, ranks: Mapping[str, int]) -> LoraAdapter:
    """Keep the leading block of every core: a client's share of a global adapter.

    Args:
        adapter: The global adapter.
        ranks: Module path -> slots to keep, 1 to the module's rank.

    Returns:
        Pairs of these ranks, scaling 1; those that keep their rank keep every bit. Modules without an entry in `ranks`
        are left out, dense tensors are kept whole.

    Raises:
        AdapterShapeError: A rank is below 1 or above what the adapter holds, or names an unknown module.
    """
    whole = fold_scaling(adapter)
    cut = prefix(whole, ranks)
    pairs = {path: pair if pair.rank == whole.pairs[path].rank else _led(pair) for path, pair in cut.pairs.items()}
    return LoraAdapter(pairs, cut.dense)


def core_start(adapter: LoraAdapter, *, seed: int) -> LoraAdapter:
    """Freeze what a run with cores starts from: orthonormal rows of `a`, and cores of zeros.

    Args:
        adapter: The adapter of round 0 as other runs start from it.
        seed: Seed of every `a`; each module draws its own.

    Returns:
        The same modules, ranks, dtypes and dense tensors; the product is zero.

    Raises:
        ModelError: A module is an embedding, whose factors a core cannot be trained between here.
    """
    return LoraAdapter({path: _start(path, pair, seed) for path, pair in adapter.pairs.items()}, adapter.dense)


def _start(path: str, pair: LoraPair, seed: int) -> LoraPair:
    if pair.form.kind == "embedding":
        raise ModelError(
            f"module {path}", "is an embedding, for which no core can be trained",
            remedy="leave embeddings out of lora.target_modules, or use another aggregator",
        )  # fmt: skip
    rows = _orthonormal_rows(pair.rank, pair.a.shape[1], _seed(f"{seed}/{path}".encode()))
    return replace(pair, a=torch.from_numpy(rows).to(pair.a.dtype), b=torch.zeros_like(pair.b), scaling=1.0)


def _led(pair: LoraPair) -> LoraPair:
    # The first columns of B0 R still hold rows of R beyond the rank; reading the core anew leaves those out.
    led = with_core(pair, core_of(pair))
    return replace(led, b=led.b.to(pair.b.dtype))


def _seed(source: bytes) -> int:
    return int.from_bytes(hashlib.sha256(source).digest()[:8], "big")


def _orthonormal_rows(count: int, size: int, seed: int) -> np.ndarray:
    """Draw orthonormal rows [count, size], zeros where there can be no more; fewer rows are the first of more.

    Gram-Schmidt with plain sums, twice per row against cancellation: a factorisation by LAPACK is faster, but neither
    nested nor the same to the bit on every machine, and client and server must hold the same numbers.
    """
    drawn = np.random.default_rng(seed).standard_normal((min(count, size), size))
    rows = np.zeros((count, size))
    for place, row in enumerate(drawn):
        earlier, left = rows[:place], row
        for _ in range(2):
            left = left - ((earlier * left).sum(1)[:, None] * earlier).sum(0)
        rows[place] = left / np.sqrt((left * left).sum())
    return rows
