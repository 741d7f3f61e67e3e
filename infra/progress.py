"""Who is told how a run gets on: the command line's progress bar, or nobody. Prefect has its own artifacts.

A context variable, so that the flow keeps its single parameter and two runs in one process do not mix.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One thing that happened.

    Args:
        run_id: In which run.
        round_index: In which round.
        num_rounds: Of how many.
        stage: "start" of a run, "plan" when a round begins, "client" when one has answered, "round" when a round is
            closed.
        rounds_done: At the start, rounds that an earlier part of the run has trained.
        clients_done: Clients that have answered in this round.
        clients: Clients invited.
        outcome: How the round ended; empty before.
        metrics: Evaluation of the global adapter after the round.
        moved_bytes: Bytes moved so far, both ways [bytes].
    """

    run_id: str
    round_index: int
    num_rounds: int
    stage: str
    rounds_done: int = 0
    clients_done: int = 0
    clients: int = 0
    outcome: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    moved_bytes: int = 0


Listener = Callable[[Progress], None]
_listener: ContextVar[Listener | None] = ContextVar("rankweave_progress", default=None)


@contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Tell a listener about every run inside the block.

    A listener may raise `RunCancelledError`: it is only told where a run can stop and be resumed.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(progress: Progress) -> None:
    """Tell whoever listens."""
    if (listener := _listener.get()) is not None:
        listener(progress)
