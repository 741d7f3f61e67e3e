"""From what a client measured in a round to what its machine can do."""

from dataclasses import dataclass

from tasks.rounds.capabilities import Capability

BYTES_PER_TRAINED_VALUE = 16
"""A trained number in float32, its gradient and Adam's two moments [bytes]."""


@dataclass(frozen=True)
class Measured:
    """What one client measured in one round; 0 where it could not.

    Args:
        num_examples: Examples it trains on.
        num_items: Examples (tokens, for language models) that its steps went through.
        base_values: Numbers in the base model.
        trained_values: Numbers that it trained.
        training_s: Time in the training loop [s].
        free_bytes: Memory that was free beside the base model [bytes].
        peak_bytes: What the training took of it [bytes].
        download_bytes: Size of its share [bytes].
        download_s: Time that took [s].
        upload_bytes: Size of its update [bytes].
        upload_s: Time that took [s].
    """

    num_examples: int
    num_items: int
    base_values: int
    trained_values: int
    training_s: float
    free_bytes: int = 0
    peak_bytes: int = 0
    download_bytes: int = 0
    download_s: float = 0.0
    upload_bytes: int = 0
    upload_s: float = 0.0


def capability_of(measured: Measured) -> Capability:
    r"""Return what a client's machine can do, by the arithmetic of frozen-base training.

    An item costs $4N + 6P$: two operations a weight forward and two for the gradient of the inputs through the frozen
    base of N numbers, and two more for the gradient of the P trained ones. Where an item visits its weights more than
    once (convolutions, tokens counted as one example) both figures are too low by the same factor, which cancels: the
    work of a round and the speed it was done at come from one measurement.

    Args:
        measured: What the client measured.

    Returns:
        Its capability; figures that were not measured are 0.

    References:
        Ours; the operation count is the usual one for frozen-base training.
    """
    base = 4.0 * measured.base_values * measured.num_items
    trained = 6.0 * measured.trained_values * measured.num_items
    state = BYTES_PER_TRAINED_VALUE * measured.trained_values
    return Capability(
        flops_per_s=_rate(base + trained, measured.training_s),
        work_flops=base,
        memory_bytes=float(measured.free_bytes),
        activation_bytes=float(max(0, measured.peak_bytes - state)),
        uplink_bytes_per_s=_rate(measured.upload_bytes, measured.upload_s),
        downlink_bytes_per_s=_rate(measured.download_bytes, measured.download_s),
        num_examples=float(measured.num_examples),
    )


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
