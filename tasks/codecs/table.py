"""The table of codecs: forms, validation and the law suite all read it."""

from tasks.codecs import fp16, fp32
from tasks.codecs.codec import Codec, CodecState
from tasks.errors import UnknownNameError

__all__ = ["CODECS", "Codec", "CodecState", "codec"]

CODECS: dict[str, Codec] = {
    "fp32": Codec("fp32", "32-bit floats: lossless", fp32.encode, fp32.decode, value_bytes=4.0),
    "fp16": Codec("fp16", "16-bit floats: half the bytes", fp16.encode, fp16.decode, value_bytes=2.0),
}


def codec(name: str) -> Codec:
    """Look up a codec.

    Args:
        name: A key of `CODECS`.

    Returns:
        The codec.

    Raises:
        UnknownNameError: No codec has this name.
    """
    if name not in CODECS:
        raise UnknownNameError("codec", name, CODECS)
    return CODECS[name]
