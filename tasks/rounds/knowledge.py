"""What a run remembers of a client from round to round, beside what its machine can do."""

import math

import msgspec

from tasks.errors import InvalidWeightError


class ClientKnowledge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client showed in the last round in which its update was accepted.

    Args:
        update_norm: Frobenius norm of what training changed, over all modules; None where it was not measured.
        loss: Its mean training loss; None where it is not known.
        num_examples: Examples it trained on.
        last_round: The round.

    Raises:
        InvalidWeightError: The norm or the loss is not finite, the norm is negative, or there are no examples.
    """

    update_norm: float | None
    loss: float | None
    num_examples: int
    last_round: int

    def __post_init__(self) -> None:
        norm, loss = (0.0 if value is None else value for value in (self.update_norm, self.loss))
        if not (math.isfinite(norm) and norm >= 0 and math.isfinite(loss) and self.num_examples >= 1):
            raise InvalidWeightError(
                "cohort", "a client cannot be chosen by this",
                got=f"norm {self.update_norm}, loss {self.loss}, {self.num_examples} examples",
                expected="a finite norm of 0 or more, a finite loss, 1 example or more",
            )  # fmt: skip
