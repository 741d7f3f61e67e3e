"""What a peer writes down: one line a round."""

from dataclasses import dataclass, field


@dataclass
class Rounds:
    """The rounds of one run, as they ended.

    Args:
        ended: When each round ended [s, monotonic clock of the machine].
        training_s: For how long at least one client was in its training loop [s].
        metrics: The server's evaluation.
        versions: Library -> version.
    """

    ended: list[float] = field(default_factory=list)
    training_s: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
