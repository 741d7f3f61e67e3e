"""Label maps: numbers and texts in, 0, 1, 2, ... out, and nothing silently guessed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.labels import label_values, make_label_map, number_labels
from tasks.errors import DataError


def numbered(raw, names=None):
    values = label_values(raw, names, "train")
    label_map = make_label_map(values, names)
    return number_labels(values, label_map, "train").tolist(), label_map.names


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.one_of(st.integers(0, 2**40)), min_size=1) | st.lists(st.text(min_size=1), min_size=1))
def test_label_names_undo_the_numbering(raw):
    # numpy cuts trailing NULs off texts; no data set has labels that differ only by them.
    raw = [value.rstrip("\0") or "x" if isinstance(value, str) else value for value in raw]
    numbers, names = numbered(raw)
    assert [names[number] for number in numbers] == [str(value) for value in raw]
    assert sorted(set(numbers)) == list(range(len(names)))


def test_numbers_without_gaps_stay_as_they_are():
    assert numbered([2, 0, 1, 2]) == ([2, 0, 1, 2], ("0", "1", "2"))


def test_numbers_are_sorted_as_numbers_and_texts_as_texts():
    assert numbered([10, 9, 10])[1] == ("9", "10")
    assert numbered(["10", "9"])[1] == ("10", "9")
    assert numbered([True, False]) == ([1, 0], ("0", "1"))
    assert numbered([1.0, 3.0])[1] == ("1", "3")


def test_declared_names_keep_their_order_and_their_unused_labels():
    assert numbered([2, 0], names=["neg", "neutral", "aye"]) == ([2, 0], ("neg", "neutral", "aye"))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ([0, None, 1], "row 1 of split 'train' has no label"),
        (["a", "", "b"], "row 1 of split 'train' has no label"),
        ([0.0, 1.0, float("nan")], "row 2 of split 'train' has no label"),
        ([0, -1, 1], "got -1 in row 1"),
        ([0.0, 2.5], "fractional labels, and regression is not supported; got 2.5"),
        (["a", 1], "neither all texts nor all numbers; got int, str"),
        ([[0], [1]], "neither all texts nor all numbers; got list"),
    ],
)
def test_unusable_label_names_field_and_row(raw, problem):
    with pytest.raises(DataError, match=r"^data\.columns\.label: ") as caught:
        numbered(raw)
    assert problem in str(caught.value)


def test_unlabelled_rows_of_declared_names_are_refused():
    with pytest.raises(DataError, match="negative label"):
        numbered([-1, -1], names=["neg", "pos"])


def test_label_outside_the_map_names_it_and_what_there_is():
    label_map = make_label_map(np.arange(30), None)
    with pytest.raises(DataError, match=r"30 in row 1; expected one of 30: 0, 1, .*, \.\.\.; remove") as caught:
        number_labels(np.array([0, 30]), label_map, "test")
    assert "split 'test'" in str(caught.value)
