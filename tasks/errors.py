"""Every error Rankweave raises on purpose.

One message form: *subject: what is wrong; got; expected; what to do*. The parts stay attributes, so a caller can
show or count them. Two mixins answer "should this be tried again?": `Transient` yes, everything else no.
Each class carries the exit code that the command line ends with.
"""

from collections.abc import Iterable
from typing import ClassVar


class RankweaveError(Exception):
    """Base of all errors that Rankweave raises on purpose.

    Args:
        subject: What the error is about: a file, a field, a client and round.
        problem: What is wrong with it.
        got: The offending value, if showing it helps.
        expected: What would have been right.
        remedy: What the reader can do now.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, subject: str, problem: str, *, got: object = None, expected: object = None, remedy: str = ""
    ) -> None:
        self.subject, self.problem, self.got, self.expected, self.remedy = (
            subject,
            problem,
            got,
            expected,
            remedy,
        )
        parts = [f"{subject}: {problem}"]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if remedy:
            parts.append(remedy)
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Prefect moves exceptions between processes; keyword-only arguments need help to survive pickling.
        return (
            _rebuild,
            (
                type(self),
                self.subject,
                self.problem,
                str_or_none(self.got),
                str_or_none(self.expected),
                self.remedy,
            ),
        )


def str_or_none(value: object) -> str | None:
    """Return a value as text, keeping None as None."""
    return None if value is None else str(value)


def _rebuild(
    cls: type[RankweaveError], subject: str, problem: str, got: str | None, expected: str | None, remedy: str
) -> RankweaveError:
    error = cls.__new__(cls)
    RankweaveError.__init__(error, subject, problem, got=got, expected=expected, remedy=remedy)
    return error


class Transient:
    """Mixin: trying again may help (a store that is down, a network that blinks)."""


def is_transient(error: BaseException) -> bool:
    """Tell whether an error is worth a retry."""
    return isinstance(error, Transient)


# --- what a user asked for ------------------------------------------------------------------------------------


class ConfigError(RankweaveError):
    """Raised when a config, an override or an argument cannot be honoured."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """Raised when a name is in no table: an aggregator, a partition, a codec, ...

    Args:
        kind: What was looked up, e.g. "aggregator".
        name: The name that was not found.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"{kind} {name!r}", "unknown name", expected="one of " + ", ".join(sorted(known)))


class RunNotFoundError(ConfigError):
    """Raised when a run id names no run in the store."""


# --- adapters and updates -------------------------------------------------------------------------------------


class AdapterFormatError(RankweaveError):
    """Raised when files are not a PEFT LoRA adapter that can be read."""

    exit_code = 2


class UnsupportedAdapterError(AdapterFormatError):
    """Raised when an adapter uses a PEFT feature that has no correct aggregate here (DoRA, grouped conv, ...)."""


class AdapterShapeError(RankweaveError):
    """Raised when shapes or modules of adapters do not fit together."""


class BaseModelMismatchError(RankweaveError):
    """Raised when an adapter was made for another base model."""

    exit_code = 2


class NonFiniteUpdateError(RankweaveError):
    """Raised when a tensor holds NaN or infinity; never read as "absent"."""


class InvalidWeightError(RankweaveError):
    """Raised when a client's weight is not a positive finite number."""


class EmptyCohortError(RankweaveError):
    """Raised when there is nothing to aggregate."""


class MixedRanksError(RankweaveError):
    """Raised when a method that needs equal ranks is given different ones."""

    exit_code = 2


class FrozenFactorError(RankweaveError):
    """Raised when a method in which all clients share one frozen factor is given clients whose copies differ."""

    exit_code = 2


class FoldOrderError(RankweaveError):
    """Raised when updates reach a fold out of order, twice, or after it was finished or merged away."""


class UpdateRefusedError(RankweaveError):
    """Raised by admission when a client's update must not count.

    Args:
        reason: Short machine-readable name of the refusal, e.g. "wrong-rank".
        subject: Client and round.
        problem: What is wrong.
        got: The offending value.
        expected: What the plan asked for.
        remedy: What the site can do.
    """

    def __init__(
        self,
        subject: str,
        problem: str,
        *,
        reason: str = "refused",
        got: object = None,
        expected: object = None,
        remedy: str = "",
    ) -> None:
        self.reason = reason
        super().__init__(subject, problem, got=got, expected=expected, remedy=remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_refusal, (self.reason, *super().__reduce__()[1][1:]))  # type: ignore[index]


def _rebuild_refusal(
    reason: str, subject: str, problem: str, got: str | None, expected: str | None, remedy: str
) -> UpdateRefusedError:
    return UpdateRefusedError(subject, problem, reason=reason, got=got, expected=expected, remedy=remedy)


# --- data and training ----------------------------------------------------------------------------------------


class DataError(RankweaveError):
    """Raised when a data set cannot be read or partitioned as asked."""

    exit_code = 2


class ModelError(RankweaveError):
    """Raised when a base model cannot be built or adapted as asked."""

    exit_code = 2


class TrainingDivergedError(RankweaveError):
    """Raised when a client's loss stops being a finite number."""


class DeadlineExceededError(RankweaveError):
    """Raised when work was stopped because its deadline had passed."""


class RunCancelledError(RankweaveError):
    """Raised when a person or the orchestrator stopped the run; it can be resumed."""

    exit_code = 7


# --- the outside ----------------------------------------------------------------------------------------------


class ObjectNotFoundError(RankweaveError):
    """Raised when a key holds no object."""


class ObjectConflictError(RankweaveError):
    """Raised when a write-once key already holds other bytes."""

    exit_code = 6


class IntegrityError(RankweaveError):
    """Raised when bytes do not have the digest or size that was recorded for them."""


class RecordFormatError(IntegrityError):
    """Raised when bytes are not the record they should be: not JSON, unknown fields, values out of bounds."""


class StoreError(RankweaveError):
    """Raised when the object store refuses: credentials, missing bucket, malformed URL."""

    exit_code = 2


class ClientMemoryError(RankweaveError):
    """Raised when a client's memory does not hold its training, whatever rank and batch it fell back to."""

    exit_code = 1


class StoreUnavailableError(Transient, StoreError):
    """Raised when the object store does not answer, or answers that it cannot now."""

    exit_code = 1


class RegistryError(RankweaveError):
    """Raised when MLflow refuses a request."""


class RegistryUnavailableError(Transient, RegistryError):
    """Raised when MLflow does not answer."""


class QuorumError(RankweaveError):
    """Raised when a run stops because a round stayed below its quorum."""

    exit_code = 5


class RunConflictError(RankweaveError):
    """Raised when a run exists already with another config, or two servers drive it at once."""

    exit_code = 6
