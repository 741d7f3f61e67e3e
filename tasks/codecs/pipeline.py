"""The codec that the others are presets of: difference, error feedback, selection, quantiser, frame.

Each stage is a value of its own module; here they are put in order, and undone in the opposite one.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from tasks.adapters.lora import LoraAdapter
from tasks.codecs.codec import CodecState, Trip
from tasks.codecs.contents import Contents, read_counters, write_counters
from tasks.codecs.cursor import Cursor, refuse
from tasks.codecs.frame import Frame, open_frame, seal
from tasks.codecs.header import read_header, with_header
from tasks.codecs.layout import Layout, Vector, check_fits, tensors, unflatten, with_values
from tasks.codecs.quantiser import Quantiser
from tasks.codecs.runs import runs_of
from tasks.codecs.selection import Selection
from tasks.codecs.sums import norm
from tasks.errors import ConfigError, NonFiniteUpdateError

_NO_CHANGE, _HAS_HEADER, _SAME_COUNTERS = 1, 2, 4


@dataclass(frozen=True)
class Pipeline:
    r"""Send $C(\theta - \theta_{ref} + e)$ and keep $e \leftarrow (\theta - \theta_{ref} + e) - C(\cdot)$.

    Args:
        name: The codec's name, in every message.
        quantiser: Numbers to bytes.
        selection: Which numbers.
        is_delta: Differences to the reference are sent; otherwise the numbers themselves.
        has_feedback: What a message left out is added to the next one.
        residual_cap: What is added is at most this many times as long as the difference itself, so that what a client
            left out long ago cannot burst into a quiet round.

    Invariants:
        What was decoded, summed over rounds, and the last residual sum to the differences, while the cap does not bind.
        An update that equals its reference takes less than 200 bytes and decodes to it exactly. Residuals of
        tensors that are absent or have other shapes are dropped.

    References:
        Stich et al., "Sparsified SGD with Memory", NeurIPS 2018 [R], for the error feedback; the cap is ours.
    """

    name: str
    quantiser: Quantiser
    selection: Selection = field(default=Selection())
    is_delta: bool = True
    has_feedback: bool = False
    residual_cap: float = 10.0

    def encode(
        self, update: LoraAdapter, reference: LoraAdapter | None, state: CodecState, trip: Trip
    ) -> tuple[bytes, CodecState]:
        """Write an update.

        Args:
            update: What to send.
            reference: What both ends hold; None only where numbers themselves are sent.
            state: Residuals, by tensor.
            trip: The transfer.

        Returns:
            The message and the next residuals; the state as it came where there is no feedback.

        Raises:
            ConfigError: Differences are sent, and there is no reference.
            AdapterShapeError: Update and reference differ in modules, ranks or tensors.
            NonFiniteUpdateError: A value or a difference is not finite or beyond float32's range.
        """
        known = self._known(reference)
        ours = Contents.of(update, self.quantiser.scale)
        if known is not None:
            check_fits(ours.layout, known.layout)
        change, base = self._change(ours, known, state)
        flags, body = self._body(ours, known, change, base, trip)
        digest = ours.digest(is_delta=False) if known is None else known.digest(is_delta=self.is_delta)
        if known is None:
            flags, sealed = flags | _HAS_HEADER, with_header(ours.layout, body)
        else:
            sealed = body
        message = seal(self.name, Frame(flags, digest, sealed))
        if not self.has_feedback:
            return message, state
        sent, _ = self._read(flags, Cursor(body), ours.layout, known, trip)
        return message, tensors(change - sent, ours.layout, self.quantiser.scale)

    def decode(self, message: bytes, reference: LoraAdapter | None, trip: Trip) -> LoraAdapter:
        """Read an update.

        Args:
            message: What `encode` wrote.
            reference: What both ends hold.
            trip: The transfer.

        Returns:
            The update in float32, scaling 1; not yet admitted.

        Raises:
            AdapterFormatError: Truncated, garbled, written by another codec or against another reference, or larger
                than the reference allows.
        """
        frame, known = open_frame(self.name, message), self._known(reference, is_reading=True)
        cursor = Cursor(frame.body)
        layout = self._layout(frame, cursor, known)
        sent, counters = self._read(frame.flags, cursor, layout, known, trip)
        if self.is_delta and known is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is for admission to refuse
                sent = known.numbers + sent
        return unflatten(sent, layout, self.quantiser.scale, counters)

    def _known(self, reference: LoraAdapter | None, *, is_reading: bool = False) -> Contents | None:
        if reference is None and self.is_delta and is_reading:
            refuse("is a difference, and there is no reference", expected="the reference that it was written against")
        if reference is None and self.is_delta:
            raise ConfigError(
                f"codec {self.name}",
                "sends differences, and there is nothing that both ends hold",
                remedy="use fp32, fp16 or flocora on this way",
            )
        return None if reference is None else Contents.of(reference, self.quantiser.scale)

    def _change(self, ours: Contents, known: Contents | None, state: CodecState) -> tuple[Vector, Vector]:
        """Return what would be sent, all of it, and what it changes."""
        base = known.numbers if self.is_delta and known is not None else np.zeros_like(ours.numbers)
        with np.errstate(over="ignore"):
            change = _checked(ours.numbers - base)
            if self.has_feedback and state:
                residual = with_values(state, ours.layout, self.quantiser.scale)
                limit, size = self.residual_cap * norm(change), norm(residual)
                change = _checked(change + (residual if size <= limit else residual * np.float32(limit / size)))
        return change, base

    def _body(
        self, ours: Contents, known: Contents | None, change: Vector, base: Vector, trip: Trip
    ) -> tuple[int, bytes]:
        counters, flags = write_counters(ours.counters), 0
        if known is not None and self.is_delta and counters == write_counters(known.counters):
            counters, flags = b"", _SAME_COUNTERS
        if known is not None and not change.any():
            return flags | _NO_CHANGE, counters
        places, told = self.selection.choose(change, base, ours.layout, trip)
        runs = runs_of(ours.layout, self.quantiser.scale, places)
        sent = self.quantiser.write(change if places is None else change[places], runs, trip)
        return flags, counters + told + sent

    def _layout(self, frame: Frame, cursor: Cursor, known: Contents | None) -> Layout:
        """Return the layout of a message, before anything of its size is made."""
        if frame.flags & _HAS_HEADER:
            if self.is_delta:
                refuse("has a header, as no difference has")
            layout = read_header(cursor)
            if known is not None and layout != known.layout:
                refuse("does not have the modules, ranks and tensors of the reference")
            return layout
        if known is None:
            refuse("has no header, and there is no reference")
        if known.digest(is_delta=self.is_delta) != frame.digest:
            refuse("was written against another reference", got=frame.digest.hex())
        return known.layout

    def _read(
        self, flags: int, cursor: Cursor, layout: Layout, known: Contents | None, trip: Trip
    ) -> tuple[Vector, dict[str, torch.Tensor]]:
        """Return what a body says, before it is added to the reference."""
        is_same = known is not None and bool(flags & _SAME_COUNTERS)
        counters = dict(known.counters) if known is not None and is_same else read_counters(cursor, layout)
        whole = np.zeros(layout.size, np.float32)
        if not flags & _NO_CHANGE:
            places = self.selection.read(cursor, layout, trip)
            runs = runs_of(layout, self.quantiser.scale, places)
            with np.errstate(over="ignore", invalid="ignore"):
                whole[slice(None) if places is None else places] = self.quantiser.read(cursor, runs)
        cursor.end(is_padded=bool(flags & _HAS_HEADER))
        return whole, counters


def _checked(change: Vector) -> Vector:
    if not np.isfinite(change).all():
        raise NonFiniteUpdateError(
            "update",
            "differs from its reference by more than float32 holds",
            remedy="use the codec fp32, lower the learning rate, or clip gradients",
        )
    return change
