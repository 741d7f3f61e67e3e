"""Everything that `datasets.load_dataset` reads: one file, a folder of files or images, a hub id.

What is here: choosing splits and columns, and errors that name the config field. Finding files is in
`hub_files.py`, reading itself is the library's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.data.hub_files import load_splits
from tasks.data.labels import LabelMap, label_values, make_label_map, number_labels
from tasks.data.raw import RawData, RawSplit, SourceSpec
from tasks.data.splits import cut_test, limit_rows
from tasks.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_TEST_SPLIT = "test"


def read_hub(spec: SourceSpec) -> RawData:
    """Read a file (json, jsonl, csv, parquet), a folder of such files or of images, or a hub id.

    In a folder, files named after the splits (`train.jsonl.gz`, `dev.csv`) are those splits; any other folder
    is left to the rules of `datasets`.

    Args:
        spec: All of it is used; `text_column` or `image_column` must be named.

    Returns:
        Texts or images with labels; a test split cut off the train split where the data have none.

    Raises:
        DataError: A file, split or column is missing or empty, a label cannot be used, or the hub is silent.
    """
    if spec.train_split == spec.test_split:
        raise DataError(
            "data.test_split",
            "is the train split; a model may not be judged on what it was trained on",
            got=repr(spec.test_split),
            remedy="name another split, or leave it empty to cut test examples off",
        )
    splits = load_splits(spec.location, (spec.train_split, spec.test_split))
    train = _split_named(splits, spec.train_split, "data.train_split")
    values, names = _values(train, spec, spec.train_split)
    label_map = None if values is None else make_label_map(values, names)
    train_labels = _numbered(values, label_map, spec.train_split)
    if not spec.test_split or (spec.test_split == DEFAULT_TEST_SPLIT and spec.test_split not in splits):
        parts = cut_test(len(train), train_labels, test_fraction=spec.test_fraction, seed=spec.seed)
        train_split, test_split = (_raw_split(train, train_labels, rows, spec) for rows in parts)
    else:
        test = _split_named(splits, spec.test_split, "data.test_split")
        test_labels = _numbered(_values(test, spec, spec.test_split)[0], label_map, spec.test_split)
        train_split = _raw_split(train, train_labels, np.arange(len(train)), spec)
        test_split = _raw_split(test, test_labels, np.arange(len(test)), spec)
    return RawData(train_split, test_split, label_map.names if label_map else ())


def _split_named(splits: "Mapping[str, Dataset]", name: str, field: str) -> "Dataset":
    if name not in splits:
        raise DataError(field, "no such split", got=repr(name), expected=f"one of {', '.join(splits)}")
    if len(splits[name]) == 0:
        raise DataError(field, f"split {name!r} is empty", remedy="name a split that holds examples")
    return splits[name]


def _values(dataset: "Dataset", spec: SourceSpec, split: str) -> tuple[np.ndarray | None, list[str] | None]:
    if not spec.label_column:
        return None, None
    _require_column(dataset, spec.label_column, "data.columns.label")
    names: list[str] | None = getattr(dataset.features[spec.label_column], "names", None)
    return label_values(dataset[spec.label_column][:], names, split), names


def _numbered(values: np.ndarray | None, label_map: LabelMap | None, split: str) -> np.ndarray | None:
    return None if values is None or label_map is None else number_labels(values, label_map, split)


def _raw_split(dataset: "Dataset", labels: np.ndarray | None, rows: np.ndarray, spec: SourceSpec) -> RawSplit:
    kept = rows[limit_rows(len(rows), limit=spec.limit, seed=spec.seed)]
    chosen = dataset.select(kept)
    if not spec.text_column and not spec.image_column:
        raise DataError(
            "data.columns.text",
            "neither a text nor an image column is named",
            expected=f"one of {', '.join(dataset.column_names)}",
            remedy="set data.columns.text or data.columns.image",
        )
    used = {spec.text_column, spec.text_pair_column, spec.prompt_column, spec.image_column}
    rest = [name for name in chosen.column_names if name not in used and not _is_image(chosen, name)]
    return RawSplit(
        images=_image_column(chosen, spec.image_column),
        texts=_text_column(chosen, spec.text_column, "data.columns.text"),
        text_pairs=_text_column(chosen, spec.text_pair_column, "data.columns.text_pair"),
        prompts=_text_column(chosen, spec.prompt_column, "data.columns.prompt"),
        labels=None if labels is None else labels[kept],
        columns={name: chosen[name][:] for name in rest},
    )


def _require_column(dataset: "Dataset", column: str, field: str) -> None:
    if column not in dataset.column_names:
        remedy = "leave the field empty for data without labels" if field == "data.columns.label" else ""
        expected = f"one of {', '.join(dataset.column_names)}"
        raise DataError(field, "no such column", got=repr(column), expected=expected, remedy=remedy)


def _text_column(dataset: "Dataset", column: str, field: str) -> list[str] | None:
    if not column:
        return None
    _require_column(dataset, column, field)
    texts: list[Any] = dataset[column][:]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                field,
                f"row {row} of column {column!r} holds no text",
                got=type(text).__name__,
                expected="a text in every row",
                remedy="fill in or remove such rows, or name another column",
            )
    return texts


def _image_column(dataset: "Dataset", column: str) -> Sequence | None:
    if not column:
        return None
    _require_column(dataset, column, "data.columns.image")
    if not _is_image(dataset, column):
        raise DataError(
            "data.columns.image",
            f"column {column!r} holds no images",
            got=dataset.features[column],
            remedy="name a column of image files; an image folder calls it 'image'",
        )
    # The column decodes an image when it is asked for, so that a folder larger than memory can be read.
    return dataset[column]


def _is_image(dataset: "Dataset", column: str) -> bool:
    from datasets import Image

    return isinstance(dataset.features[column], Image)
