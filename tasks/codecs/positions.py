"""Which of n units a message speaks of: a bitmap, the gaps between them, or an entropy-coded bitmap."""

import numpy as np

from tasks.codecs.cursor import Cursor, refuse
from tasks.codecs.packing import Codes, from_entropy, pack, to_entropy, unpack

_BITMAP, _GAPS, _ENTROPY = 0, 1, 2


def as_bitmap(chosen: Codes, units: int) -> bytes:
    """Write one bit per unit.

    Args:
        chosen: Places from 0 to units - 1, rising.
        units: How many there are.

    Returns:
        ceil(units / 8) bytes.
    """
    return np.packbits(_marks(chosen, units), bitorder="little").tobytes()


def as_gaps(chosen: Codes) -> bytes:
    """Write how many units lie between one place and the next, all in as many bits as the largest gap needs.

    Args:
        chosen: Places, rising.

    Returns:
        Their number, the bits of a gap, the gaps.
    """
    gaps = np.diff(chosen, prepend=-1) - 1
    width = max(int(gaps.max(initial=0)).bit_length(), 1)
    return len(chosen).to_bytes(5, "little") + bytes([width]) + pack(gaps, width)


def as_entropy(chosen: Codes, units: int) -> bytes:
    """Write the bitmap at about its entropy.

    Args:
        chosen: Places from 0 to units - 1, rising.
        units: How many there are, at least one.

    Returns:
        About units * H2(chosen / units) / 8 bytes.
    """
    return to_entropy(_marks(chosen, units).astype(np.int64))


def write_positions(chosen: Codes, units: int) -> bytes:
    """Write places the shortest way.

    Args:
        chosen: Places from 0 to units - 1, rising.
        units: How many there are, at least one.

    Returns:
        A flag and the places.
    """
    ways = {_BITMAP: as_bitmap(chosen, units), _GAPS: as_gaps(chosen), _ENTROPY: as_entropy(chosen, units)}
    flag = min(ways, key=lambda way: (len(ways[way]), way))
    return bytes([flag]) + ways[flag]


def read_positions(cursor: Cursor, units: int) -> Codes:
    """Read what `write_positions` wrote.

    Args:
        cursor: Where the places start.
        units: How many there are to choose from.

    Returns:
        The places, rising.

    Raises:
        AdapterFormatError: Ends too early, garbled, or a place beyond the last unit.
    """
    flag = cursor.number(1)
    if flag == _BITMAP:
        data = np.frombuffer(cursor.take(-(-units // 8)), np.uint8)
        return np.flatnonzero(np.unpackbits(data, count=units, bitorder="little")).astype(np.int64)
    if flag == _ENTROPY:
        return np.flatnonzero(from_entropy(cursor, units)).astype(np.int64)
    if flag != _GAPS:
        refuse("is garbled", got=f"places written in way {flag}")
    return _from_gaps(cursor, units)


def _from_gaps(cursor: Cursor, units: int) -> Codes:
    count, width = cursor.number(5), cursor.number(1)
    if count > units or not 1 <= width <= 40:
        refuse("is garbled", got=f"{count} places of {width} bits", expected=f"at most {units}")
    gaps = unpack(cursor, count, width)
    if count and float(gaps.sum(dtype=np.float64)) + count > units:
        refuse("is garbled", got="a place beyond the last number", expected=f"{units} numbers")
    return np.cumsum(gaps + 1) - 1


def _marks(chosen: Codes, units: int) -> np.ndarray:
    marks = np.zeros(units, np.uint8)
    marks[chosen] = 1
    return marks
