"""What is known about a client's machine: what it measured while it trained, and what it could not do.

Records, as in `records.py`: plain values that are written down and that rank schedulers read.
"""

from typing import Annotated

import msgspec

Measured = Annotated[float, msgspec.Meta(ge=0.0, le=1e30)]


class Capability(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client's machine, as its own measurements show it; 0 stands for what was not measured.

    Args:
        flops_per_s: Arithmetic it did per second of training [1/s].
        work_flops: Arithmetic of one round on the frozen base model alone, whatever the rank [1].
        memory_bytes: Memory that training may take beside the frozen base model [bytes].
        activation_bytes: What activations took of it at the configured batch [bytes].
        uplink_bytes_per_s: Measured while it uploaded its update [bytes/s].
        downlink_bytes_per_s: Measured while it downloaded its share [bytes/s].
        num_examples: Examples it trains on.
    """

    flops_per_s: Measured = 0.0
    work_flops: Measured = 0.0
    memory_bytes: Measured = 0.0
    activation_bytes: Measured = 0.0
    uplink_bytes_per_s: Measured = 0.0
    downlink_bytes_per_s: Measured = 0.0
    num_examples: Measured = 0.0


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client turned out not to manage, or not to need; 0 stands for no limit.

    Args:
        memory_rank: Largest rank that fitted into its memory [slots].
        batch_size: Largest batch that did [examples].
        pruned_rank: Rank that it pruned itself to [slots].
    """

    memory_rank: int = 0
    batch_size: int = 0
    pruned_rank: int = 0
