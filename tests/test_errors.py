"""Every error carries its parts, survives pickling, and says whether to try again."""

import inspect
import pickle

import pytest

from tasks import errors
from tasks.errors import (
    RankweaveError,
    StoreUnavailableError,
    Transient,
    UnknownNameError,
    UpdateRefusedError,
    is_transient,
)

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, RankweaveError) and cls is not UnknownNameError
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_error_survives_pickling_with_all_its_parts(cls):
    error = cls("client c07", "rank is wrong", got=16, expected=8, remedy="train again")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert type(copy) is cls
    assert str(copy) == str(error) == "client c07: rank is wrong; got 16; expected 8; train again"
    assert (copy.subject, copy.problem, copy.remedy) == ("client c07", "rank is wrong", "train again")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_error_docstring_says_when_it_is_raised(cls):
    assert cls is RankweaveError or cls.__doc__.startswith("Raised ")


def test_unknown_name_lists_what_is_known_and_survives_pickling():
    error = UnknownNameError("aggregator", "rbal", ["zero_pad", "rbla"])
    assert "rbla, zero_pad" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  # our own bytes


def test_refusal_keeps_its_reason_when_pickled():
    error = UpdateRefusedError("client c01", "not finite", reason="non-finite")
    assert pickle.loads(pickle.dumps(error)).reason == "non-finite"  # noqa: S301  # our own bytes


def test_only_transient_errors_are_worth_a_retry():
    assert is_transient(StoreUnavailableError("store", "does not answer"))
    assert [cls.__name__ for cls in CLASSES if issubclass(cls, Transient)] == [
        "RegistryUnavailableError",
        "StoreUnavailableError",
    ]
    assert not is_transient(ValueError("x"))
