"""Where every random draw comes from: one seed per (run's seed, purpose, round, client), by hashing.

A client's draws do not depend on who else takes part or in which order clients run.
"""

import hashlib


def derive_seed(seed: int, *labels: str | int) -> int:
    """Derive an independent seed from the run's seed and what it is for.

    Args:
        seed: The run's seed.
        labels: What the draw is for, e.g. ("train", 3, "c07").

    Returns:
        An integer in [0, 2**63).
    """
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_nonce(run_id: str, round_index: int, client_id: str) -> str:
    """Derive the token that ties an update to one invitation, so that an old update cannot pass for a new one."""
    return hashlib.sha256(f"{run_id}/{round_index}/{client_id}".encode()).hexdigest()[:32]
