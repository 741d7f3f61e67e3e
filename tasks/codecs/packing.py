"""Small whole numbers as bytes: each in as many bits as the largest needs, or entropy-coded, whichever is shorter.

The entropy coder is asymmetric numeral systems over a table of whole counts that travels with the numbers, so that both
ends build the very same model. What is entropy-coded can be shorter than any bound on its length: readers say how many
numbers they expect, and nothing here takes more memory than that.
"""

from typing import Any, cast

import constriction
import numpy as np
from numpy.typing import NDArray

from tasks.codecs.cursor import Cursor, refuse

Codes = NDArray[np.int64]

_stream: Any = cast("Any", constriction).stream  # the library tells type checkers nothing of its contents

_PACKED, _ENTROPY = 0, 1
_TOTAL = 1 << 15
_MAX_ALPHABET = 256


def pack(codes: Codes, width: int) -> bytes:
    """Write numbers in a fixed number of bits each.

    Args:
        codes: From 0 to 2^width - 1.
        width: 1 to 63 [bits].

    Returns:
        ceil(n * width / 8) bytes, lowest bits first.
    """
    if width in (8, 16, 32):
        return codes.astype(f"<u{width // 8}").tobytes()
    size = 8 * -(-width // 8)
    rows = np.zeros((codes.size, 8), np.uint8)
    rows[:] = codes.astype("<u8").view(np.uint8).reshape(-1, 8)
    bits = np.unpackbits(rows[:, : size // 8], axis=1, bitorder="little")[:, :width]
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(cursor: Cursor, count: int, width: int) -> Codes:
    """Read what `pack` wrote.

    Args:
        cursor: Where the numbers start.
        count: How many there are.
        width: What each takes [bits].

    Returns:
        The numbers.

    Raises:
        AdapterFormatError: The message ends before.
    """
    if width in (8, 16, 32):
        return cursor.array(f"<u{width // 8}", count).astype(np.int64)
    data = np.frombuffer(cursor.take(-(-count * width // 8)), np.uint8)
    bits = np.unpackbits(data, count=count * width, bitorder="little").reshape(count, width)
    rows = np.zeros((count, 8), np.uint8)
    rows[:, : -(-width // 8)] = np.packbits(bits, axis=1, bitorder="little")
    return rows.reshape(-1).view("<u8").astype(np.int64)


def write_codes(codes: Codes, levels: int) -> bytes:
    """Write numbers of one alphabet the shorter way.

    Args:
        codes: From 0 to levels - 1.
        levels: Size of the alphabet, at least 2.

    Returns:
        A flag and the numbers; nothing for no numbers.
    """
    if not codes.size:
        return b""
    ways = [bytes([_PACKED]) + pack(codes, (levels - 1).bit_length())]
    if levels <= _MAX_ALPHABET:
        ways.append(bytes([_ENTROPY]) + to_entropy(codes))
    return min(ways, key=len)


def read_codes(cursor: Cursor, count: int, levels: int) -> Codes:
    """Read what `write_codes` wrote.

    Args:
        cursor: Where the numbers start.
        count: How many there are.
        levels: Size of the alphabet.

    Returns:
        The numbers, from 0 to levels - 1.

    Raises:
        AdapterFormatError: Ends too early, garbled, or a number outside the alphabet.
    """
    if not count:
        return np.zeros(0, np.int64)
    way = cursor.number(1)
    if way not in (_PACKED, _ENTROPY):
        refuse("is garbled", got=f"codes written in way {way}")
    codes = unpack(cursor, count, (levels - 1).bit_length()) if way == _PACKED else from_entropy(cursor, count)
    if int(codes.max()) >= levels:
        refuse("is garbled", got=f"code {int(codes.max())}", expected=f"below {levels}")
    return codes


def to_entropy(codes: Codes) -> bytes:
    """Write numbers from 0 to 255 at about their empirical entropy.

    Args:
        codes: At least one number.

    Returns:
        First symbol, alphabet size less one, a 16-bit count per symbol, number of words, words.
    """
    low, high = int(codes.min()), int(codes.max())
    counts = _shared_out(np.bincount(codes - low, minlength=high - low + 1))
    coder = _stream.stack.AnsCoder()
    coder.encode_reverse((codes - low).astype(np.int32), _model(counts))
    words = np.asarray(coder.get_compressed()).astype("<u4").tobytes()
    head = bytes([low, high - low]) + counts.astype("<u2").tobytes()
    return head + (len(words) // 4).to_bytes(4, "little") + words


def from_entropy(cursor: Cursor, count: int) -> Codes:
    """Read what `to_entropy` wrote.

    Args:
        cursor: Where it starts.
        count: How many numbers there are.

    Returns:
        The numbers.

    Raises:
        AdapterFormatError: Ends too early, impossible counts, or words for other than `count` numbers.
    """
    low, size = cursor.number(1), cursor.number(1) + 1
    counts = cursor.array("<u2", size).astype(np.int64)
    if int(counts.sum()) != _TOTAL:
        refuse("is garbled", got=f"counts that sum to {int(counts.sum())}", expected=_TOTAL)
    words = cursor.array("<u4", cursor.number(4)).astype(np.uint32)
    if words.size and not words[-1]:  # the coder never writes this and refuses to read it
        refuse("is garbled", got="entropy-coded words that end in a zero")
    coder = _stream.stack.AnsCoder(words)
    codes = np.asarray(coder.decode(_model(counts), count)).astype(np.int64) + low
    if not coder.is_empty():
        refuse("is garbled", got=f"entropy-coded words for more than {count} numbers")
    return codes


def _shared_out(histogram: Codes) -> Codes:
    """Scale counts to whole ones that sum to `_TOTAL`, none that occurs below 1; the most frequent takes the rest."""
    scaled = np.maximum(histogram * _TOTAL // int(histogram.sum()), histogram > 0)
    scaled[int(np.argmax(scaled))] += _TOTAL - int(scaled.sum())
    return scaled


def _model(counts: Codes) -> Any:
    # Whole counts below 2^24 are exact in float32, so are their sums; an alphabet of one is no alphabet to the library.
    table = np.append(counts, 0) if counts.size == 1 else counts
    return _stream.model.Categorical(table.astype(np.float32), lazy=False, perfect=False)
