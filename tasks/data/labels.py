"""Labels as data sets write them -> numbers 0, 1, 2, ... with a name each.

The label map comes from the train split alone: the distinct values in ascending order, or the names that the
data set declares. Every refusal names the config field `data.columns.label`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.errors import DataError

FIELD = "data.columns.label"
MAX_SHOWN = 12


@dataclass(frozen=True)
class LabelMap:
    """Which label has which number.

    Args:
        numbers: Label value -> number, 0 to the number of labels less one.
    """

    numbers: Mapping[int | str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """Label names in the order of their numbers."""
        return tuple(str(value) for value in self.numbers)


def label_values(raw: Sequence | np.ndarray, names: Sequence[str] | None, split: str) -> np.ndarray:
    """Check one split's labels and return their values.

    Args:
        raw: [N] integers, whole floats or texts, as the data set holds them.
        names: Names the data set declares for integer labels; None if it declares none.
        split: Name of the split, for messages.

    Returns:
        [N] int64 or str; str where names are declared.

    Raises:
        DataError: A label is missing, negative, fractional or neither number nor text.
    """
    values = raw if isinstance(raw, np.ndarray) else np.asarray(_without_gaps(raw, split))
    if values.dtype.kind == "U" or values.size == 0:
        return values
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        raise DataError(
            FIELD,
            f"split {split!r} has fractional labels, and regression is not supported",
            got=values[values != np.floor(values)][0],
            remedy="name a column of classes",
        )
    values = values.astype(np.int64)
    _refuse_negative(values, split)
    return values if names is None else np.asarray(names)[values]


def make_label_map(values: np.ndarray, names: Sequence[str] | None) -> LabelMap:
    """Number the labels of the train split.

    Args:
        values: [N] what `label_values` returned for the train split.
        names: Names the data set declares, whose order is kept; None to sort the values.

    Returns:
        The map that train and test share.
    """
    ordered = [value.item() for value in np.unique(values)] if names is None else list(names)
    return LabelMap({value: number for number, value in enumerate(ordered)})


def number_labels(values: np.ndarray, label_map: LabelMap, split: str) -> np.ndarray:
    """Replace every label by its number.

    Args:
        values: [N] what `label_values` returned.
        label_map: The map of the train split.
        split: Name of the split, for messages.

    Returns:
        [N] int64 label numbers.

    Raises:
        DataError: A label is not in the map.
    """
    distinct, positions = np.unique(values, return_inverse=True)
    numbers = [label_map.numbers.get(value.item(), -1) for value in distinct]
    if -1 in numbers:
        unknown = distinct[numbers.index(-1)].item()
        known = [repr(value) for value in label_map.numbers]
        shown = ", ".join(known[:MAX_SHOWN]) + (", ..." if len(known) > MAX_SHOWN else "")
        raise DataError(
            FIELD,
            f"split {split!r} has a label that the train split does not have",
            got=f"{unknown!r} in row {int(np.argmax(values == unknown))}",
            expected=f"one of {len(known)}: {shown}",
            remedy="remove those rows, or check that both splits use the same labels",
        )
    return np.asarray(numbers, dtype=np.int64)[positions]


def _without_gaps(raw: Sequence, split: str) -> Sequence:
    for row, value in enumerate(raw):
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise DataError(
                FIELD,
                f"row {row} of split {split!r} has no label",
                expected="a label in every row",
                remedy="fill in or remove rows without a label, or name another column",
            )
    kinds = {type(value) for value in raw}
    if kinds != {str} and not kinds <= {int, float, bool}:
        raise DataError(
            FIELD,
            f"split {split!r} has labels that are neither all texts nor all numbers",
            got=", ".join(sorted(kind.__name__ for kind in kinds)),
            remedy="name a column with one label per example, all of one kind",
        )
    return raw


def _refuse_negative(values: np.ndarray, split: str) -> None:
    if values.min() < 0:
        row = int(np.argmax(values < 0))
        raise DataError(
            FIELD,
            f"split {split!r} has a negative label, which data sets use for 'no label' or 'out of scope'",
            got=f"{values[row]} in row {row}",
            expected="labels of 0 or more",
            remedy="remove those rows, or name another split; leave data.test_split empty to cut one off",
        )
