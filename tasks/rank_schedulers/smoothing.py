"""What is known of a machine over several rounds: measurements of one round are noisy."""

from tasks.errors import ConfigError
from tasks.rounds.capabilities import Capability


def smoothed(old: Capability | None, new: Capability, kept: float) -> Capability:
    """Blend what was known of a machine with what it measured now: an exponential moving average, field by field.

    Args:
        old: What was known; None for a client never heard of.
        new: What it measured in this round.
        kept: Share of what was known that stays [fraction].

    Returns:
        `kept` times old plus `1 - kept` times new; a field that is 0, so not measured, in one of them takes the
        other's.

    Raises:
        ConfigError: The share is not between 0 and 1.

    Invariants:
        Nothing known, or nothing kept -> what was measured. Equal fields stay. Between the two otherwise.
    """
    if not 0.0 <= kept <= 1.0:
        raise ConfigError("kept share of a capability", "is no share", got=kept, expected="0 to 1")
    if old is None:
        return new
    fields = Capability.__struct_fields__
    return Capability(**{name: _blend(getattr(old, name), getattr(new, name), kept) for name in fields})


def _blend(old: float, new: float, kept: float) -> float:
    if not old or not new:
        return old or new
    # Rounding must not leave the two: equal measurements stay, and nothing measured becomes 0.
    return min(max(kept * old + (1 - kept) * new, min(old, new)), max(old, new))
