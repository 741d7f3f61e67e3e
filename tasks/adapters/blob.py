"""Named tensors as one safetensors blob, and back: the only bytes that tensors ever travel as.

Here: determinism (the same tensors give the same bytes) and distrust of what arrives. Not here: what the names mean
(`peft_files`).
"""

import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from tasks.errors import AdapterFormatError

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""The largest header that is parsed; a real adapter's header is some 100 bytes per tensor."""

_PREFIX_BYTES = 8
_ALIGNMENT = 8


def to_blob(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise tensors, byte for byte the same for the same tensors and metadata.

    Args:
        tensors: Name -> tensor of any shape and device; read only.
        metadata: Text to carry in the header.

    Returns:
        The blob; its header says "format": "pt" as PEFT's and transformers' own files do.
    """
    # Copies, because the library refuses views that share memory.
    copies = {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}
    data = safetensors_torch.save(copies, {"format": "pt", **(metadata or {})})
    size = _header_bytes(data, "adapter")
    header = json.loads(data[_PREFIX_BYTES : _PREFIX_BYTES + size])
    # The library writes metadata in the order of a hash map, which changes from call to call.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_PREFIX_BYTES, "little") + text + data[_PREFIX_BYTES + size :]


def from_blob(data: bytes, subject: str) -> dict[str, torch.Tensor]:
    """Read tensors from a blob that may be damaged or hostile.

    Args:
        data: The blob.
        subject: Whom to name in errors, e.g. a file.

    Returns:
        Name -> tensor on the CPU, owning its memory.

    Raises:
        AdapterFormatError: Truncated, garbled, overlapping, or with a header above `MAX_HEADER_BYTES`.
    """
    _header_bytes(data, subject)
    try:
        return safetensors_torch.load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        # KeyError: a dtype that this version of torch does not know.
        raise _damaged(subject, f"is no readable safetensors data ({error})") from error


def _header_bytes(data: bytes, subject: str) -> int:
    if len(data) < _PREFIX_BYTES:
        raise _damaged(subject, "is too short to be safetensors data", got=f"{len(data)} bytes")
    size = int.from_bytes(data[:_PREFIX_BYTES], "little")
    room = min(MAX_HEADER_BYTES, len(data) - _PREFIX_BYTES)
    if size > room:
        raise _damaged(subject, "announces a header that cannot be", got=f"{size} bytes", expected=f"at most {room}")
    return size


def _damaged(subject: str, problem: str, *, got: object = None, expected: object = None) -> AdapterFormatError:
    return AdapterFormatError(
        subject, problem, got=got, expected=expected, remedy="fetch or write the file again; it was cut or garbled"
    )
