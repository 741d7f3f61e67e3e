"""The lossless codec: every number as a 32-bit float."""

import torch

from tasks.codecs.casting import Cast
from tasks.codecs.codec import Wire


def start() -> Wire:
    """Start the codec: 4 bytes per number and a header; lossless for float32 and everything narrower."""
    return Cast(torch.float32)


def value_bytes() -> float:
    """Return what a number takes [bytes]."""
    return 4.0
