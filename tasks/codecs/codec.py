"""What a codec is: an update to bytes and back, and what a client remembers in between."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tasks.adapters.lora import LoraAdapter

CodecState = Mapping[str, torch.Tensor] | None
"""What one client keeps between its uploads, by tensor name (error feedback, ...); None before the first."""


@dataclass(frozen=True)
class Codec:
    """One way to put an update on the wire; the length of its message is what the ledger books.

    Args:
        name: The key in `CODECS`.
        title: One line for forms and tables.
        encode: (update, reference, state) -> (message, next state); the reference is the adapter that both sides know,
            None where they share none yet.
        decode: (message, reference) -> update in float32, scaling 1.
        value_bytes: What a number takes in a message, for plans made ahead; the ledger books messages [bytes].
    """

    name: str
    title: str
    encode: Callable[[LoraAdapter, LoraAdapter | None, CodecState], tuple[bytes, CodecState]]
    decode: Callable[[bytes, LoraAdapter | None], LoraAdapter]
    value_bytes: float
