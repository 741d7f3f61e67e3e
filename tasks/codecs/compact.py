"""Our own codec: the pipeline with every stage to choose."""

import math

from tasks.codecs.codec import Wire
from tasks.codecs.layout import GROUP, Scale
from tasks.codecs.pipeline import Pipeline
from tasks.codecs.quantiser import Floats
from tasks.codecs.selection import PICKING, Selection, Way
from tasks.codecs.symmetric import Symmetric
from tasks.errors import ConfigError
from tasks.options import Option

_BITS = (32, 16, 8, 6, 4, 2, 1)

OPTIONS = (
    Option("keep", "Share of the numbers that is sent", 1.0, least=1e-5),
    Option(
        "select",
        "Which numbers are sent where not all are: the largest changes, whole rank slots, a random draw that is the "
        "same for all clients, or segments in turn",
        "top",
        kind="choice",
        choices=("top", "ranks", "shared", "rotating"),
    ),
    Option(
        "bits", "Bits of a number: 8, 6, 4, 2 or 1 on a grid, 16 or 32 as a float", 8, least=1, most=32, kind="count"
    ),
    Option(
        "scale",
        "What shares one step of the grid: a rank slot, 64 numbers or the whole message",
        "slot",
        kind="choice",
        choices=("slot", "group", "message"),
    ),
    Option("stochastic", "Round at random, exact on average, instead of to the nearest step", 0, kind="switch"),
    Option(
        "residual_cap",
        "What messages left out is added to the next one, cut to this multiple of the change itself; 0 forgets it, as "
        "shared and rotating always do",
        10.0,
        most=1e6,
    ),
)


def start(
    *,
    keep: float,
    select: Way,
    bits: int,
    scale: Scale,
    stochastic: bool,
    residual_cap: float,
) -> Wire:
    """Start the codec.

    Args:
        keep: Share of the numbers that is sent.
        select: Which ones.
        bits: Of a number.
        scale: What shares one step.
        stochastic: Random rounding.
        residual_cap: How much of what messages left out is added, relative to the change.

    Returns:
        The codec at work.

    Raises:
        ConfigError: A number of bits that there is no grid for.
    """
    if bits not in _BITS:
        raise ConfigError("option bits of compact", "has no usable value", got=bits, expected=f"one of {_BITS}")
    quantiser = Floats(bits) if bits >= 16 else Symmetric(bits, scale, is_stochastic=stochastic)
    selection = Selection("all") if keep >= 1.0 else Selection(select, keep)
    # What waits for its turn is trained again meanwhile: remembered as well, it would count once for every round.
    has_feedback = residual_cap > 0.0 and (keep >= 1.0 or select in PICKING)
    return Pipeline("compact", quantiser, selection, has_feedback=has_feedback, residual_cap=residual_cap)


def picks(*, keep: float, select: Way, **others: object) -> bool:
    """Tell whether each client chooses which numbers it sends.

    Args:
        keep: Share of the numbers that is sent.
        select: Which ones.
        others: Options that do not matter here.
    """
    del others
    return keep < 1.0 and select in PICKING


def value_bytes(*, keep: float, select: Way, bits: int, scale: Scale, **others: object) -> float:
    """Return what a number takes, before entropy coding.

    Args:
        keep: Share of the numbers that is sent.
        select: Which ones.
        bits: Of a number.
        scale: What shares one step.
        others: Options that do not matter here.

    Returns:
        Numbers, steps of groups and the entropy of the places [bytes]; steps of rank slots are too few to count.
    """
    del others
    places = entropy_bytes(keep) if select == "top" and keep < 1.0 else 0.0
    steps = 2.0 / GROUP if scale == "group" and bits < 16 else 0.0
    return keep * (bits / 8.0 + steps) + places


def entropy_bytes(density: float) -> float:
    """Return what it takes to tell whether a number is sent.

    Args:
        density: Share of the numbers that is sent, 0 to 1.

    Returns:
        The binary entropy of the density [bytes].
    """
    return -sum(p * math.log2(p) for p in (density, 1.0 - density) if p > 0.0) / 8.0
