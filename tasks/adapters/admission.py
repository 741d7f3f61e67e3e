"""May this update enter the aggregate? It must be shaped exactly like the share its client was sent.

Here: checks on tensors. Not here: checks on manifests, digests and deadlines (`tasks.rounds`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NoReturn

import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, check_finite, fold_scaling
from tasks.errors import NonFiniteUpdateError, UpdateRefusedError


def admit(update: LoraAdapter, share: LoraAdapter, *, subject: str) -> LoraAdapter:
    """Refuse an update that is not shaped like its share, or not made of finite numbers.

    Args:
        update: What the client's message decodes to.
        share: What the plan sent to the client: its modules, ranks, sizes, dense tensors and dtypes are the law.
        subject: Whom to name, e.g. "client c07, round 3".

    Returns:
        The update with its scaling folded, in the share's dtypes.

    Raises:
        UpdateRefusedError: Names the tensor; reasons "missing-tensor", "unknown-tensor", "wrong-rank", "wrong-shape",
            "wrong-dtype", "non-finite".
    """
    _check_names(subject, "module", got=update.pairs, expected=share.pairs)
    _check_names(subject, "dense tensor", got=update.dense, expected=share.dense)
    for path, pair in update.pairs.items():
        _check_pair(f"{subject}, module {path}", pair, share.pairs[path])
    for name, tensor in update.dense.items():
        _check_dense(f"{subject}, tensor {name}", tensor, share.dense[name])
    cast = _cast_like(fold_scaling(update), share)
    try:
        check_finite(cast, subject)  # after the cast: a value may be finite in float64 and not in float32
    except NonFiniteUpdateError as error:
        raise UpdateRefusedError(
            error.subject, error.problem, reason="non-finite", expected=error.expected, remedy=error.remedy
        ) from error
    return cast


def _check_names(subject: str, what: str, *, got: Iterable[str], expected: Iterable[str]) -> None:
    missing, unknown = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing:
        problem = f"{len(missing)} {what}(s) of the share are missing, the first is {missing[0]}"
        _refuse(subject, problem, reason="missing-tensor")
    if unknown:
        problem = f"holds {len(unknown)} {what}(s) that the share does not have, the first is {unknown[0]}"
        _refuse(subject, problem, reason="unknown-tensor")


def _check_pair(subject: str, pair: LoraPair, share: LoraPair) -> None:
    if pair.rank != share.rank:
        _refuse(subject, "rank is not the plan's", reason="wrong-rank", got=pair.rank, expected=share.rank)
    got, expected = ((p.b.shape[0], p.form) for p in (pair, share))
    if got != expected:
        _refuse(subject, "outer sizes are not the share's", reason="wrong-shape", got=got, expected=expected)
    for name, factor in (("a", pair.a), ("b", pair.b)):
        if not factor.is_floating_point():
            _refuse(
                subject,
                f"factor {name} has the wrong dtype",
                reason="wrong-dtype",
                got=factor.dtype,
                expected="a floating dtype",
            )


def _check_dense(subject: str, tensor: torch.Tensor, share: torch.Tensor) -> None:
    if tensor.shape != share.shape:
        got, expected = tuple(tensor.shape), tuple(share.shape)
        _refuse(subject, "shape is not the share's", reason="wrong-shape", got=got, expected=expected)
    both_float = tensor.is_floating_point() and share.is_floating_point()
    if not both_float and tensor.dtype != share.dtype:
        _refuse(subject, "wrong dtype", reason="wrong-dtype", got=tensor.dtype, expected=share.dtype)


def _cast_like(update: LoraAdapter, share: LoraAdapter) -> LoraAdapter:
    pairs: Mapping[str, LoraPair] = {
        path: replace(pair, a=pair.a.to(share.pairs[path].a.dtype), b=pair.b.to(share.pairs[path].b.dtype))
        for path, pair in update.pairs.items()
    }
    return LoraAdapter(pairs, {name: t.to(share.dense[name].dtype) for name, t in update.dense.items()})


def _refuse(subject: str, problem: str, *, reason: str, got: object = None, expected: object = None) -> NoReturn:
    remedy = "train from this round's share and upload exactly its tensors"
    raise UpdateRefusedError(subject, problem, reason=reason, got=got, expected=expected, remedy=remedy)
