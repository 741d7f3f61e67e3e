"""The table of codecs: forms, validation and the law suite all read it."""

from collections.abc import Mapping

from tasks.codecs import compact, fp16, fp32, published
from tasks.codecs.codec import Codec, CodecState, Trip, Wire, always
from tasks.errors import UnknownNameError
from tasks.options import Value, chosen

__all__ = ["CODECS", "Codec", "CodecState", "Trip", "Wire", "codec", "picks", "value_bytes", "wire"]

CODECS: dict[str, Codec] = {
    "fp32": Codec("fp32", "32-bit floats: lossless", fp32.start, fp32.value_bytes, is_exact=True),
    "fp16": Codec("fp16", "16-bit floats: half the bytes", fp16.start, fp16.value_bytes),
    "compact": Codec(
        "compact",
        "changes on a grid, errors remembered: a quarter of the bytes, fewer if asked",
        compact.start,
        compact.value_bytes,
        compact.OPTIONS,
        needs_reference=True,
        picks=compact.picks,
    ),
    "flasc": Codec(
        "flasc",
        "FLASC: the largest changes",
        published.flasc,
        published.flasc_bytes,
        published.FLASC_OPTIONS,
        needs_reference=True,
        picks=always,
    ),
    "flocora": Codec(
        "flocora",
        "FLoCoRA: numbers in 8 bits or fewer, a range per channel",
        published.flocora,
        published.bits_bytes,
        published.FLOCORA_OPTIONS,
    ),
    "laq": Codec(
        "laq",
        "LAQ's quantiser: changes in 4 bits, one range",
        published.laq,
        published.bits_bytes,
        published.LAQ_OPTIONS,
        needs_reference=True,
    ),
    "aquila": Codec(
        "aquila",
        "AQUILA's quantiser: as many bits as the change needs, guarded",
        published.aquila,
        published.aquila_bytes,
        published.AQUILA_OPTIONS,
        needs_reference=True,
    ),
    "ecolora": Codec(
        "ecolora",
        "inspired by EcoLoRA: a quarter of the changes each round, in turn",
        published.ecolora,
        published.ecolora_bytes,
        published.ECOLORA_OPTIONS,
        needs_reference=True,
    ),
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


def wire(name: str, values: Mapping[str, Value]) -> Wire:
    """Start a codec with its options.

    Args:
        name: A key of `CODECS`.
        values: Option name -> value; what is missing keeps its default.

    Returns:
        The codec at work.

    Raises:
        UnknownNameError: No codec has this name, or it has no such option.
        ConfigError: A value is out of bounds.
    """
    row = codec(name)
    return row.start(**chosen(row.name, row.options, values))


def value_bytes(name: str, values: Mapping[str, Value]) -> float:
    """Return what a number takes in a message, for plans made ahead.

    Args:
        name: A key of `CODECS`.
        values: As in `wire`.

    Returns:
        An estimate [bytes]; the ledger books messages.

    Raises:
        UnknownNameError: No codec has this name, or it has no such option.
        ConfigError: A value is out of bounds.
    """
    row = codec(name)
    return row.value_bytes(**chosen(row.name, row.options, values))


def picks(name: str, values: Mapping[str, Value]) -> bool:
    """Tell whether each client chooses which numbers it sends, so that their places tell about its data.

    Args:
        name: A key of `CODECS`.
        values: As in `wire`.

    Returns:
        True where sums of messages hide nothing about who sent what.

    Raises:
        UnknownNameError: No codec has this name, or it has no such option.
        ConfigError: A value is out of bounds.
    """
    row = codec(name)
    return row.picks(**chosen(row.name, row.options, values))
