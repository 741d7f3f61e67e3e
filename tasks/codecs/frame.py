"""What is around the body of every message: whose it is, what it is a difference to, and that it arrived whole.

magic 4, version 1, length of the codec's name 1, name, flags 1, digest of the reference 8, body, checksum 8 [bytes].
"""

import hashlib
from dataclasses import dataclass

from tasks.codecs.cursor import Cursor, refuse

MAGIC = b"RwUp"
_VERSION = 1
_SUM_BYTES = 8


@dataclass(frozen=True)
class Frame:
    """A message taken apart.

    Args:
        flags: What the body holds, as its codec means them.
        digest: Of the reference [8 bytes].
        body: The rest.
    """

    flags: int
    digest: bytes
    body: bytes


def digest_of(*parts: bytes) -> bytes:
    """Return the first 8 bytes of SHA-256: against accidents and mix-ups, not against forgers."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.digest()[:_SUM_BYTES]


def seal(codec: str, frame: Frame) -> bytes:
    """Put a frame around a body.

    Args:
        codec: The codec's name.
        frame: What to send.

    Returns:
        The message.
    """
    name = codec.encode()
    head = MAGIC + bytes([_VERSION, len(name)]) + name + bytes([frame.flags]) + frame.digest
    return head + frame.body + digest_of(head, frame.body)


def open_frame(codec: str, message: bytes) -> Frame:
    """Take a message apart.

    Args:
        codec: The name of the codec that reads.
        message: The message.

    Returns:
        What `seal` was given.

    Raises:
        AdapterFormatError: Truncated, garbled, of another version, or written by another codec.
    """
    if message[: len(MAGIC)] != MAGIC:
        refuse("is garbled or was written by another codec", got=f"{message[:4]!r} at its start", expected=codec)
    content, checksum = message[:-_SUM_BYTES], message[-_SUM_BYTES:]
    if len(message) < len(MAGIC) + 3 + 2 * _SUM_BYTES or digest_of(content) != checksum:
        refuse("is truncated or garbled: its checksum does not hold")
    cursor = Cursor(content[len(MAGIC) :])
    version = cursor.number(1)
    if version != _VERSION:
        refuse("has another version", got=version, expected=_VERSION)
    name = cursor.take(cursor.number(1)).decode("ascii", "replace")
    if name != codec:
        refuse("was written by another codec", got=name, expected=codec)
    return Frame(cursor.number(1), cursor.take(_SUM_BYTES), cursor.take(cursor.left))
