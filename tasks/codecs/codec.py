"""What a codec is: an update to bytes and back, and what a client remembers in between."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from tasks.adapters.lora import LoraAdapter
from tasks.options import Option

CodecState = Mapping[str, torch.Tensor] | None
"""What one client keeps between its uploads, by tensor name (error feedback, ...); None before the first."""


@dataclass(frozen=True)
class Trip:
    """What both ends of a transfer know about it without being told.

    Args:
        round_index: The round.
        seed: The same for every client of the round: masks and dithers that all must draw alike come from it.
    """

    round_index: int
    seed: int


class Wire(Protocol):
    """A codec with its options."""

    def encode(
        self, update: LoraAdapter, reference: LoraAdapter | None, state: CodecState, trip: Trip
    ) -> tuple[bytes, CodecState]:
        """Write an update.

        Args:
            update: What to send; any scaling.
            reference: What both ends hold, with the update's modules, ranks and tensors; None where they share nothing.
            state: What this end kept from its last message.
            trip: The transfer.

        Returns:
            The message, and what to keep for the next one.
        """
        ...

    def decode(self, message: bytes, reference: LoraAdapter | None, trip: Trip) -> LoraAdapter:
        """Read what `encode` wrote, given the same reference and trip.

        Returns:
            The update in float32, scaling 1; not yet admitted.

        Raises:
            AdapterFormatError: Truncated, garbled, written by another codec or against another reference, or larger
                than the reference allows.
        """
        ...


def always(**options: object) -> bool:
    """Return true, whatever the options."""
    del options
    return True


def never(**options: object) -> bool:
    """Return false, whatever the options."""
    del options
    return False


@dataclass(frozen=True)
class Codec:
    """One way to put an update on the wire; the length of its message is what the ledger books.

    Args:
        name: The key in `CODECS`.
        title: One line for forms and tables.
        start: Options as keywords -> the codec at work.
        value_bytes: The same keywords -> what a number takes in a message, for plans made ahead; the ledger books
            messages [bytes].
        options: What people may set.
        is_exact: What arrives is what was sent, to the bit in float32.
        needs_reference: Messages are differences: both ends must hold what they differ from.
        picks: The same keywords -> whether each client chooses which numbers it sends, so that their places tell about
            its data.
    """

    name: str
    title: str
    start: Callable[..., Wire]
    value_bytes: Callable[..., float]
    options: tuple[Option, ...] = ()
    is_exact: bool = False
    needs_reference: bool = False
    picks: Callable[..., bool] = never
