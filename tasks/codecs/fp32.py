"""The lossless codec: every number as a 32-bit float."""

import torch

from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import encode_adapter
from tasks.codecs.casting import cast, decode_cast
from tasks.codecs.codec import CodecState


def encode(update: LoraAdapter, reference: LoraAdapter | None, state: CodecState) -> tuple[bytes, CodecState]:
    """Write an update as float32; lossless for float32 and everything narrower.

    Args:
        update: What the client trained.
        reference: The share it started from; not needed here.
        state: The client's codec memory; passed through.

    Returns:
        The message, 4 bytes per number and a header, and the state.

    Raises:
        NonFiniteUpdateError: A value is not finite, or beyond float32's range.
    """
    del reference
    return encode_adapter(cast(update, torch.float32)), state


def decode(message: bytes, reference: LoraAdapter | None) -> LoraAdapter:
    """Read an update from float32.

    Args:
        message: What `encode` wrote.
        reference: The share the client started from; not needed here.

    Returns:
        The update in float32, scaling 1; not yet admitted.

    Raises:
        AdapterFormatError: Truncated, garbled, or written by another codec.
    """
    del reference
    return decode_cast(message, torch.float32)
