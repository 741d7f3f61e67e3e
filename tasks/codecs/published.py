"""Published codecs as presets of the pipeline, each with the options that its paper has."""

from typing import cast

from tasks.codecs.affine import Affine
from tasks.codecs.codec import Wire
from tasks.codecs.compact import entropy_bytes
from tasks.codecs.lazy_grids import Adaptive, Grid, Uniform
from tasks.codecs.pipeline import Pipeline
from tasks.codecs.quantiser import Floats
from tasks.codecs.selection import Selection
from tasks.options import Option

FLASC_OPTIONS = (Option("keep", "Share of the numbers that is sent", 0.25, least=1e-5),)
FLOCORA_OPTIONS = (Option("bits", "Bits of a number", 8, least=2, most=8, kind="count"),)
LAQ_OPTIONS = (Option("bits", "Bits of a number", 4, least=1, most=8, kind="count"),)
AQUILA_OPTIONS = (
    Option("grid", "Levels with zero among them, or LAQ's without", "symmetric", kind="choice",
           choices=("symmetric", "laq")),
)  # fmt: skip
ECOLORA_OPTIONS = (Option("keep", "Share of the numbers that is sent", 0.25, least=1e-5),)


def flasc(*, keep: float) -> Wire:
    """Start FLASC's uplink: the largest changes as 32-bit floats, nothing remembered.

    Args:
        keep: Share of the numbers that is sent.

    Returns:
        The codec at work.

    References:
        Kuo et al., "Federated LoRA with Sparse Communication", arXiv 2406.05233; the authors' code [C]. We differ:
        places count as bytes and take as few as they can.
    """
    return Pipeline("flasc", Floats(32), Selection("top", keep))


def flasc_bytes(*, keep: float) -> float:
    """Return what a number takes, places included [bytes]."""
    return 4.0 * keep + entropy_bytes(keep)


def flocora(*, bits: int) -> Wire:
    """Start FLoCoRA's quantised messages: the numbers themselves, one range per output channel, either way.

    Args:
        bits: Of a number.

    Returns:
        The codec at work; references in `tasks.codecs.affine`.
    """
    return Pipeline("flocora", Affine(bits), is_delta=False)


def laq(*, bits: int) -> Wire:
    """Start LAQ's quantiser on the change of a round.

    Args:
        bits: Of a number.

    Returns:
        The codec at work. LAQ quantises what its gradient differs from the last one that was sent, which remembers its
        own errors; between rounds that start from a new share, error feedback stands in for that memory. Its lazy
        uploads are not part of a codec. References in `tasks.codecs.lazy_grids`.
    """
    return Pipeline("laq", Uniform(bits), has_feedback=True)


def aquila(*, grid: str) -> Wire:
    """Start AQUILA's adaptive quantiser on the change of a round, with our guard against stalling.

    Args:
        grid: "symmetric" or "laq".

    Returns:
        The codec at work, with error feedback as in `laq`. References in `tasks.codecs.lazy_grids`.
    """
    return Pipeline("aquila", Adaptive(cast("Grid", grid)), has_feedback=True)


def aquila_bytes(*, grid: str) -> float:
    """Return a guess of what a number takes: two bits, as bell-shaped changes do [bytes]."""
    del grid
    return 2.0 / 8.0


def ecolora(*, keep: float) -> Wire:
    """Start segments in turn, inspired by EcoLoRA: every round another share of the numbers, as 32-bit floats.

    Args:
        keep: Share of the numbers that is sent, made one over a whole number.

    Returns:
        The codec at work. What waits for its turn is dropped, not remembered: added up over the rounds of a turn it
        overshoots, because all of it was meant for the same old share.

    References:
        "EcoLoRA", arXiv 2506.02001, of which we read the abstract [A]. There each client of a round sends another
        segment, and sparsifies it; here all send the same one whole, so that no place is sent and sums can be masked.
    """
    return Pipeline("ecolora", Floats(32), Selection("rotating", keep))


def ecolora_bytes(*, keep: float) -> float:
    """Return what a number takes over all rounds [bytes]."""
    return 4.0 / max(round(1.0 / keep), 1)


def bits_bytes(*, bits: int) -> float:
    """Return what a number takes, ranges left out [bytes]."""
    return bits / 8.0
