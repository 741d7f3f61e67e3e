"""Adapters with a factor left out: what crosses the link where both sides know the rest.

A factor that is frozen, kept at home or drawn from a seed is not sent. A thin message is an adapter without pairs whose
dense tensors hold the factors that are sent, so that every codec carries it like any other. Between two frozen factors
it is the core alone that is sent, R numbers squared (`tasks.adapters.core`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from tasks.adapters.core import core_of, with_core
from tasks.adapters.lora import LoraAdapter, LoraPair, fold_scaling
from tasks.errors import UpdateRefusedError

Parts = Literal["both", "a", "b", "core", "none"]
"""Which factors of every pair are sent; dense tensors always are."""

_SUFFIX = {"a": "::lora_A", "b": "::lora_B", "core": "::core"}  # no module path holds a colon
_NAME = {"a": "factor a", "b": "factor b", "core": "the core"}
_EXPECTED = {part: f"{name} of every pair alone" for part, name in _NAME.items()} | {"none": "no factor of any pair"}
_REMEDY = "train from this round's share and upload exactly its tensors"


def thin(adapter: LoraAdapter, parts: Parts) -> LoraAdapter:
    """Leave out what the other side knows.

    Args:
        adapter: Any adapter; its scaling is folded.
        parts: What to keep of every pair; what of `b` no core can express is left out by "core".

    Returns:
        The adapter itself for "both", otherwise one without pairs.
    """
    if parts == "both":
        return adapter
    kept = {}
    if parts != "none":
        for path, pair in fold_scaling(adapter).pairs.items():
            kept[path + _SUFFIX[parts]] = _sent(pair, parts)
    return LoraAdapter({}, {**adapter.dense, **kept})


def fill(message: LoraAdapter, known: Mapping[str, LoraPair], parts: Parts, *, subject: str) -> LoraAdapter:
    """Put back what `thin` left out.

    Args:
        message: What arrived.
        known: Module path -> pair that has the missing factor; scaling 1. For "core", the frozen `a`, with any `b`.
        parts: What was sent.
        subject: Whom to name, e.g. "client c07, round 3".

    Returns:
        The whole adapter; the message itself for "both".

    Raises:
        UpdateRefusedError: A factor is missing (reason "missing-tensor"), does not fit (reason "wrong-shape"), or came
            together with the one that is known (reason "unknown-tensor").
    """
    if parts == "both":
        return message
    dense, pairs = dict(message.dense), dict(known)
    if parts != "none":
        pairs = {path: _joined(pair, dense.pop(path + _SUFFIX[parts], None), parts, f"{subject}, module {path}")
                 for path, pair in known.items()}  # fmt: skip
    if message.pairs:
        problem = f"holds {len(message.pairs)} whole pair(s), the first is {next(iter(message.pairs))}"
        raise UpdateRefusedError(subject, problem, reason="unknown-tensor", expected=_EXPECTED[parts], remedy=_REMEDY)
    return LoraAdapter(pairs, dense)


def _sent(pair: LoraPair, part: str) -> torch.Tensor:
    if part == "core":
        return core_of(pair)
    return pair.a if part == "a" else pair.b


def _joined(known: LoraPair, sent: torch.Tensor | None, part: str, subject: str) -> LoraPair:
    expected = (known.rank, known.rank) if part == "core" else tuple(_sent(known, part).shape)
    if sent is None:
        raise UpdateRefusedError(subject, f"{_NAME[part]} is missing", reason="missing-tensor", remedy=_REMEDY)
    if tuple(sent.shape) != expected:
        raise UpdateRefusedError(
            subject,
            f"{_NAME[part]} does not have the share's shape",
            reason="wrong-shape",
            got=tuple(sent.shape),
            expected=expected,
            remedy=_REMEDY,
        )
    if part == "core":
        return with_core(known, sent)
    return replace(known, a=sent) if part == "a" else replace(known, b=sent)
