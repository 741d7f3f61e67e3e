"""Updates cast to one floating dtype: what the plain codecs share."""

from dataclasses import dataclass, replace

import torch

from tasks.adapters.lora import LoraAdapter, check_finite, fold_scaling
from tasks.adapters.peft_files import decode_adapter, encode_adapter, to_state_dict
from tasks.codecs.codec import CodecState, Trip
from tasks.codecs.frame import MAGIC
from tasks.errors import AdapterFormatError, NonFiniteUpdateError


@dataclass(frozen=True)
class Cast:
    """Every number in one floating dtype, in one safetensors blob with PEFT's keys; no reference, no memory.

    Args:
        dtype: A floating dtype.
    """

    dtype: torch.dtype

    def encode(
        self, update: LoraAdapter, reference: LoraAdapter | None, state: CodecState, trip: Trip
    ) -> tuple[bytes, CodecState]:
        """Write an update, rounding to nearest.

        Args:
            update: What to send.
            reference: Not needed.
            state: Passed through.
            trip: Not needed.

        Returns:
            The message, and the state.

        Raises:
            NonFiniteUpdateError: A value is not finite, or beyond the dtype's range: refused, never an infinity.
        """
        del reference, trip
        return encode_adapter(cast(update, self.dtype)), state

    def decode(self, message: bytes, reference: LoraAdapter | None, trip: Trip) -> LoraAdapter:
        """Read an update.

        Args:
            message: What `encode` wrote.
            reference: Not needed.
            trip: Not needed.

        Returns:
            The update in float32, scaling 1; not yet admitted.

        Raises:
            AdapterFormatError: Truncated, garbled, or written by another codec.
        """
        del reference, trip
        return decode_cast(message, self.dtype)


def cast(update: LoraAdapter, dtype: torch.dtype) -> LoraAdapter:
    """Cast every floating tensor; integers (counters) pass unchanged.

    Args:
        update: Any adapter.
        dtype: A floating dtype.

    Returns:
        The adapter in that dtype, scaling folded.

    Raises:
        NonFiniteUpdateError: A value is not finite, or beyond the range of `dtype`.
    """
    folded = fold_scaling(update)
    check_finite(folded, "update")
    small = _to_dtype(folded, dtype)
    _check_range(folded, small, dtype)
    return small


def decode_cast(message: bytes, dtype: torch.dtype) -> LoraAdapter:
    """Read an update whose floating tensors were sent in one dtype.

    Args:
        message: A blob from `encode_adapter`.
        dtype: The dtype that the codec sends.

    Returns:
        The adapter in float32, scaling 1.

    Raises:
        AdapterFormatError: Truncated or garbled, or another dtype: another codec wrote the message.
    """
    if message[: len(MAGIC)] == MAGIC:
        raise AdapterFormatError(
            "update message", "was written by another codec", remedy="client and server must run with one config"
        )
    sent = decode_adapter(message, subject="update message")
    for key, tensor in to_state_dict(sent).items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            raise AdapterFormatError(
                f"update message, tensor {key}",
                "was written by another codec",
                got=tensor.dtype,
                expected=dtype,
                remedy="client and server must run with one config",
            )
    return _to_dtype(sent, torch.float32)  # what is not finite is for admission to refuse


def _to_dtype(adapter: LoraAdapter, dtype: torch.dtype) -> LoraAdapter:
    return LoraAdapter(
        {p: replace(pair, a=pair.a.to(dtype), b=pair.b.to(dtype)) for p, pair in adapter.pairs.items()},
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in adapter.dense.items()},
    )


def _check_range(wide: LoraAdapter, narrow: LoraAdapter, dtype: torch.dtype) -> None:
    before = to_state_dict(wide)
    for key, tensor in to_state_dict(narrow).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteUpdateError(
                f"update, tensor {key}",
                f"holds a value beyond the range of {dtype}",
                got=f"{float(before[key].abs().max()):.6g}",
                expected=f"at most {torch.finfo(dtype).max:.6g}",
                remedy="use the codec fp32, lower the learning rate, or clip gradients",
            )
