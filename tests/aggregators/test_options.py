"""Options are shown by the table, checked at the door, and reach the method."""

import inspect
import math

import pytest

from tasks.aggregators.cohort import aggregate
from tasks.aggregators.options import BANK_FACTOR, COVERAGE_EXPONENT
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import ConfigError, FoldOrderError, UnknownNameError
from tasks.options import Option, chosen
from tests.aggregators.cases import client

SWITCH = Option("is_on", "turns it on", default=0.0, kind="switch")
OPTIONS = (COVERAGE_EXPONENT, BANK_FACTOR, SWITCH)


def test_defaults_hold_unless_set():
    assert chosen("x", OPTIONS, {}) == {"coverage_exponent": 1.0, "bank_factor": 2, "is_on": False}
    values = chosen("x", OPTIONS, {"bank_factor": 3.0, "is_on": 1.0, "coverage_exponent": 0})
    assert values == {"coverage_exponent": 0.0, "bank_factor": 3, "is_on": True}
    assert [type(value) for value in values.values()] == [float, int, bool]


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"option of x 'bank'.*bank_factor, coverage_exponent, is_on"):
        chosen("x", OPTIONS, {"bank": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coverage_exponent", 1.5),
        ("coverage_exponent", -0.1),
        ("coverage_exponent", math.nan),
        ("coverage_exponent", math.inf),
        ("bank_factor", 2.5),
        ("bank_factor", 0),
        ("bank_factor", 65),
        ("is_on", 0.5),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(name: str, value: float):
    with pytest.raises(ConfigError, match=f"option {name} of x: has no usable value"):
        chosen("x", OPTIONS, {name: value})


@pytest.mark.parametrize("name", AGGREGATORS)
def test_rows_name_keywords_of_their_start_with_the_same_default(name: str):
    row = AGGREGATORS[name]
    keywords = inspect.signature(row.start).parameters
    for option in row.options:
        assert keywords[option.name].default == option.default
        assert option.least <= option.default <= option.most
        assert not option.description.endswith(".")


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_method_refuses_options_it_does_not_have(name: str):
    kind, message = (UnknownNameError, f"option of {name}") if AGGREGATORS[name].options else (ConfigError, name)
    with pytest.raises(kind, match=f"{message}.*no_such"):
        aggregate(name, [client({"m": 1}, 1)], [1.0], options={"no_such": 1.0})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("flexlora", "energy", 0.5), ("raflora", "coverage_exponent", 0.5), ("flora_stack", "recompress_rank", 1)],
)
def test_folds_under_different_options_do_not_merge(name: str, option: str, value: float):
    left, right = AGGREGATORS[name].fold(), AGGREGATORS[name].fold({option: value})
    left.add(0, client({"m": 1}, 1), 1.0)
    right.add(64, client({"m": 1}, 2), 1.0)
    with pytest.raises(FoldOrderError, match="another method"):
        left.merge(right)
