"""A number that a run's server keeps to itself: who is drawn into a round must not follow from what others know."""

import os
from pathlib import Path

from infra.directory_store import DirectoryStore
from tasks.rounds.keys import check_id

_BYTES = 16
_NAME = "server-secret"


def server_secret(home: Path, run_id: str) -> int:
    """Return the secret of a run on this machine, drawn from the operating system on first use.

    Args:
        home: Where this machine keeps its state.
        run_id: The run.

    Raises:
        StoreError: The folder cannot be read or written.
    """
    store = DirectoryStore(home.resolve() / "private" / check_id("run", run_id))
    store.create(_NAME, os.urandom(_BYTES))
    return int.from_bytes(store.get(_NAME), "big")
