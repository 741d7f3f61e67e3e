"""A layout as text, for messages to an end that holds nothing; read without trusting it."""

import json
import math
from typing import Any, get_args

from tasks.adapters.lora import LayerForm, LayerKind
from tasks.codecs.cursor import Cursor, refuse
from tasks.codecs.layout import Counter, Layout, Part

MAX_HEADER_BYTES = 1 << 20
MAX_NUMBERS = 1 << 33

_COUNTER_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "bool")


def to_header(layout: Layout) -> bytes:
    """Write a layout.

    Args:
        layout: Any.

    Returns:
        JSON, the same for the same layout.
    """
    shapes = [list(part.shape) for part in layout.parts]
    pairs = [
        [path, form.kind, list(form.a_tail), list(form.b_tail), *shapes[2 * i : 2 * i + 2]]
        for i, (path, form) in enumerate(layout.forms)
    ]
    dense = [[part.name, list(part.shape)] for part in layout.parts[2 * len(pairs) :]]
    counters = [[counter.name, list(counter.shape), counter.dtype] for counter in layout.counters]
    return json.dumps([pairs, dense, counters], separators=(",", ":")).encode()


def with_header(layout: Layout, body: bytes) -> bytes:
    """Put a header before a body.

    Args:
        layout: What the body holds.
        body: Numbers and counters.

    Returns:
        Length, header, body; zero bytes follow a body of less than one bit per number, so that the length of a message
        bounds what its header may claim.
    """
    header = to_header(layout)
    return len(header).to_bytes(4, "little") + header + body.ljust(-(-layout.size // 8), b"\0")


def read_header(cursor: Cursor) -> Layout:
    """Read the header of a message.

    Args:
        cursor: Where it starts; left where the body starts.

    Returns:
        Its layout.

    Raises:
        AdapterFormatError: Ends too early, garbled, or more numbers than the rest of the message has bits.
    """
    size = cursor.number(4)
    if size > MAX_HEADER_BYTES:
        refuse("has too large a header", got=f"{size} bytes", expected=f"at most {MAX_HEADER_BYTES}")
    layout = from_header(cursor.take(size))
    if layout.size > 8 * cursor.left:
        refuse("is shorter than its header says", got=f"{cursor.left} bytes", expected=f"{layout.size} numbers")
    return layout


def from_header(data: bytes) -> Layout:
    """Read what `to_header` wrote.

    Args:
        data: The header, at most `MAX_HEADER_BYTES`.

    Returns:
        A layout of at most `MAX_NUMBERS` numbers.

    Raises:
        AdapterFormatError: No JSON, an impossible layout, or a larger one.
    """
    try:
        layout = _parsed(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        refuse("has a garbled header")
    names = [part.name for part in layout.parts] + [counter.name for counter in layout.counters]
    if len(set(names)) < len(names) or to_header(layout) != data:
        refuse("has a garbled header")
    if layout.size > MAX_NUMBERS:
        refuse("holds too many numbers", got=layout.size, expected=f"at most {MAX_NUMBERS}")
    return layout


def _parsed(document: Any) -> Layout:
    pairs, dense, counters = document
    forms, parts = [], []
    for path, kind, a_tail, b_tail, a, b in pairs:
        form = LayerForm(kind, _sizes(a_tail), _sizes(b_tail))
        a_shape, b_shape = _sizes(a), _sizes(b)
        fits = kind in get_args(LayerKind) and len(a_shape) == len(b_shape) == 2 and a_shape[0] == b_shape[1] > 0
        if not fits or math.prod(form.a_tail) != a_shape[1] or math.prod(form.b_tail) != 1:
            raise ValueError(path)
        forms.append((_text(path), form))
        parts += [Part(f"{path}::lora_A", a_shape), Part(f"{path}::lora_B", b_shape)]
    parts += [Part(_text(name), _sizes(shape)) for name, shape in dense]
    found = tuple(Counter(_text(name), _sizes(shape), _dtype(dtype)) for name, shape, dtype in counters)
    # Adapters sort their tensors: any other order would put numbers into the wrong ones.
    for order in (forms, parts[2 * len(forms) :], found):
        names = [item[0] if isinstance(item, tuple) else item.name for item in order]
        if names != sorted(names):
            raise ValueError(names)
    return Layout(tuple(forms), tuple(parts), found)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and 0 <= size <= MAX_NUMBERS for size in value):
        raise ValueError(value)
    if math.prod(value) > MAX_NUMBERS:
        raise ValueError(value)
    return tuple(value)


def _dtype(value: Any) -> str:
    if value not in _COUNTER_DTYPES:
        raise ValueError(value)
    return value
