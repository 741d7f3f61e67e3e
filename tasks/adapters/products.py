"""What a pair stands for, `scaling * b @ a`, measured and cut without ever being built where that can be avoided.

Here: inner products, norms, distances, spectra and best low-rank cuts. Not here: changing ranks of whole adapters
(`resize`), files (`peft_files`), weighting and averaging (`tasks.aggregators`).

Legend of dimensions: R rank, I inputs, O outputs, K = min(O, I, R). All arithmetic is float64 on the CPU.
"""

import math
from dataclasses import dataclass, replace

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.errors import AdapterShapeError

# 1 - 0.9 is less than 0.1: a share that slots hold exactly must not cost one more slot.
_SHARE_ROUNDING = 1e-12


def f64(tensor: torch.Tensor) -> torch.Tensor:
    """Return numbers as all arithmetic here takes them: float64, on the CPU, without gradient."""
    return tensor.detach().to("cpu", torch.float64)


def inner(p: LoraPair, q: LoraPair) -> float:
    """Return the Frobenius inner product of two updates of one layer, scalings included.

    `<b_p a_p, b_q a_q> = sum((b_p^T b_q) * (a_p a_q^T))`: two small Gram matrices instead of two dense products.

    Args:
        p: a [R_p, I], b [O, R_p].
        q: a [R_q, I], b [O, R_q].

    Returns:
        The inner product. Rounding is relative to the factors: for the distance of near-equal updates use
        `adapter_distance`, which does not cancel.

    Raises:
        AdapterShapeError: The outer sizes differ.
    """
    check_same_layer("pair", p, q)
    gram_b = f64(p.b).T @ f64(q.b)
    gram_a = f64(p.a) @ f64(q.a).T
    return p.scaling * q.scaling * float((gram_b * gram_a).sum())


def pair_norm(pair: LoraPair) -> float:
    """Return the Frobenius norm of one module's update.

    Args:
        pair: a [R, I], b [O, R].

    Returns:
        `||scaling * b @ a||_F`, accurate even where slots cancel each other (QR core, no square root of a difference).
    """
    return float(torch.linalg.matrix_norm(_factored(pair).core))


def adapter_norm(adapter: LoraAdapter) -> float:
    """Return the norm of all modules' updates taken together.

    Args:
        adapter: Any adapter; its dense tensors do not count.

    Returns:
        The root of the sum of squared module norms.
    """
    return math.hypot(*(pair_norm(pair) for pair in adapter.pairs.values()))


def adapter_distance(x: LoraAdapter, y: LoraAdapter) -> float:
    """Return how far apart two adapters' updates are, whatever their ranks and gauges.

    The difference of two updates is itself a pair of rank R_x + R_y, so its norm costs one QR of stacked factors, and
    equal updates come out at rounding level rather than at its square root.

    Args:
        x: Any adapter.
        y: Any adapter; a module that only one side has counts whole, dense tensors do not count.

    Returns:
        `||dW_x - dW_y||_F` over all modules.

    Raises:
        AdapterShapeError: A shared module has different outer sizes.
    """
    parts = []
    for path in sorted({*x.pairs, *y.pairs}):
        if path in x.pairs and path in y.pairs:
            parts.append(pair_norm(_difference(path, x.pairs[path], y.pairs[path])))
        else:
            parts.append(pair_norm(x.pairs[path] if path in x.pairs else y.pairs[path]))
    return math.hypot(*parts)


def spectrum(pair: LoraPair) -> torch.Tensor:
    """Return the singular values of one module's update.

    Args:
        pair: a [R, I], b [O, R].

    Returns:
        [K] float64, descending, K = min(O, I, R).
    """
    return torch.linalg.svdvals(_factored(pair).core)


def dense_product(pair: LoraPair) -> torch.Tensor:
    """Return the update itself.

    For tests, small layers and the moment of merging into a base model only: a 4096 x 4096 layer costs 128 MiB here,
    where its factors at rank 16 cost one. Norms, distances and cuts have functions above that need no dense matrix.

    Args:
        pair: a [R, I], b [O, R].

    Returns:
        [O, I] float64, `scaling * b @ a`.
    """
    return pair.scaling * (f64(pair.b) @ f64(pair.a))


def truncate(pair: LoraPair, rank: int, *, energy: float = 1.0) -> LoraPair:
    """Return the best approximation of an update at a given rank.

    Singular vectors and values come from QR of both factors and an SVD of the small core. The split is balanced
    (square root of the singular values on both sides); the sign makes the largest entry of each left vector positive.

    Args:
        pair: a [R, I], b [O, R].
        rank: Slots wanted [1, ...); slots beyond the update's own rank come out as zeros in both factors.
        energy: Below 1, leave out the last slots as long as the others hold this share or more of the sum of squared
            singular values [fraction]; then the result may have fewer slots than `rank`, no zeros, but at least one.

    Returns:
        a [rank, I], b [O, rank] in the input's dtypes, slots by falling singular value, scaling 1.

    Raises:
        AdapterShapeError: `rank` is below 1.

    Invariants:
        The error is the tail of the spectrum; cutting twice is cutting once; a prefix of the result is the smaller cut.

    References:
        C. Eckart, G. Young, "The approximation of one matrix by another of lower rank", Psychometrika 1 (1936). QR
        then core SVD is the textbook route for a factored matrix; the balanced split and the sign are our choice.
    """
    check_rank("pair", rank)
    factored = _factored(pair)
    left, sigma, right = torch.linalg.svd(factored.core, full_matrices=False)
    # What the core's own rounding made is no direction: without this, dead slots would hold noise.
    floor = torch.finfo(torch.float64).eps * max(factored.core.shape) * sigma[0]
    kept = min(rank, int((sigma > floor).sum()))
    if energy < 1.0:
        kept = min(kept, _slots_for_energy(sigma, energy))
        rank = max(kept, 1)
    u_OK, v_KI = factored.lift_left(left[:, :kept]), factored.lift_right(right[:kept])
    sign_K = _column_signs(u_OK)
    root_K = sigma[:kept].sqrt() * sign_K
    a = v_KI.new_zeros(rank, v_KI.shape[1])
    b = u_OK.new_zeros(u_OK.shape[0], rank)
    a[:kept] = root_K[:, None] * v_KI
    b[:, :kept] = u_OK * root_K
    return replace(pair, a=a.to(pair.a.dtype), b=b.to(pair.b.dtype), scaling=1.0)


def _slots_for_energy(sigma: torch.Tensor, energy: float) -> int:
    """Count the fewest slots that hold a share of the energy, a share that is met to rounding included.

    The tail beyond them is summed from its small end.
    """
    squares = sigma.square()
    tail = squares.flip(0).cumsum(0).flip(0)  # tail[i]: energy of slots i and after
    return int((tail > (1.0 - energy + _SHARE_ROUNDING) * tail[0]).sum())


def check_rank(subject: str, rank: int) -> None:
    """Raise unless a rank is one an adapter can have.

    Args:
        subject: What to name in the message, e.g. "module layers.0".
        rank: The rank asked for.

    Raises:
        AdapterShapeError: The rank is below 1.
    """
    if rank < 1:
        raise AdapterShapeError(
            subject,
            "cannot be brought to this rank",
            got=rank,
            expected="a rank of 1 or more",
            remedy="leave a module out of the target modules to give it no adapter",
        )


def check_same_layer(subject: str, p: LoraPair, q: LoraPair) -> None:
    """Raise unless two updates are of one size.

    Args:
        subject: What to name in the message, e.g. "module layers.0".
        p: a [R_p, I], b [O, R_p].
        q: What has to be like it.

    Raises:
        AdapterShapeError: The outer sizes differ.
    """
    sizes_p, sizes_q = ((pair.b.shape[0], pair.a.shape[1]) for pair in (p, q))
    if sizes_p != sizes_q:
        raise AdapterShapeError(
            subject, "outer sizes differ between two updates", got=f"[O, I] {sizes_q}", expected=sizes_p
        )


@dataclass(frozen=True)
class _Factored:
    """An update as `q_left @ core @ q_right^T`; no q on either side where the core is the update itself."""

    core: torch.Tensor
    q_left: torch.Tensor | None = None
    q_right: torch.Tensor | None = None

    def lift_left(self, left: torch.Tensor) -> torch.Tensor:
        return left if self.q_left is None else self.q_left @ left

    def lift_right(self, right: torch.Tensor) -> torch.Tensor:
        return right if self.q_right is None else right @ self.q_right.T


def _factored(pair: LoraPair) -> _Factored:
    if pair.rank >= min(pair.b.shape[0], pair.a.shape[1]):
        # Then the dense update is no larger than its factors.
        return _Factored(dense_product(pair))
    q_OR, r_left = torch.linalg.qr(f64(pair.b))
    q_IR, r_right = torch.linalg.qr(f64(pair.a).T)
    return _Factored(pair.scaling * (r_left @ r_right.T), q_OR, q_IR)


def _difference(path: str, p: LoraPair, q: LoraPair) -> LoraPair:
    check_same_layer(f"module {path}", p, q)
    return LoraPair(
        a=torch.cat([f64(p.a), f64(q.a)]),
        b=torch.cat([p.scaling * f64(p.b), -q.scaling * f64(q.b)], dim=1),
    )


def _column_signs(u_OK: torch.Tensor) -> torch.Tensor:
    largest = u_OK.abs().argmax(dim=0, keepdim=True)
    return torch.where(u_OK.gather(0, largest).squeeze(0) < 0, -1.0, 1.0).to(u_OK.dtype)
