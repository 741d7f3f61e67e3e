"""A message read from front to back, refusing to run past its end."""

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from tasks.errors import AdapterFormatError

SUBJECT = "update message"


def refuse(problem: str, *, got: object = None, expected: object = None) -> NoReturn:
    """Raise, because a message cannot be read.

    Args:
        problem: What is wrong.
        got: What was found.
        expected: What would have been right.

    Raises:
        AdapterFormatError: Always.
    """
    raise AdapterFormatError(
        SUBJECT, problem, got=got, expected=expected, remedy="client and server must run with one config"
    )


class Cursor:
    """A place in a message.

    Args:
        data: The message, or a part of it.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes and move past them.

        Raises:
            AdapterFormatError: Fewer are left.
        """
        if not 0 <= size <= self.left:
            refuse("ends too early", got=f"{self.left} bytes", expected=f"{size} bytes more")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """Return the next bytes as an unsigned number, little-endian."""
        return int.from_bytes(self.take(size), "little")

    def array(self, dtype: str, count: int) -> NDArray[np.generic]:
        """Return the next numbers of one little-endian dtype, e.g. "<f4"."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    @property
    def left(self) -> int:
        """What has not been read yet [bytes]."""
        return len(self._data) - self._at

    def end(self, *, is_padded: bool = False) -> None:
        """Raise if anything is left.

        Args:
            is_padded: Zero bytes may follow.

        Raises:
            AdapterFormatError: Bytes follow the message.
        """
        rest = self._data[self._at :]
        if any(rest) if is_padded else rest:
            refuse("is longer than what it holds", got=f"{self.left} bytes more")
