"""A location (file, folder, hub id) -> the splits that `datasets` finds there.

Every way in which that can fail becomes a `DataError` about `data.location`; waiting for the hub has an end.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

FIELD = "data.location"
HUB_TIMEOUT_S = 10.0

FORMATS: Mapping[str, str] = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# Only an empty cell is a missing one: a class called "NA" or "null" is a class.
READER_OPTIONS: Mapping[str, Mapping] = {"csv": {"keep_default_na": False, "na_values": [""]}}


def load_splits(location: str, split_names: Sequence[str]) -> "Mapping[str, Dataset]":
    """Load every split there is at a location.

    Args:
        location: File, folder, or hub id (`name`, `owner/name`, each with an optional `:configuration`).
        split_names: Names of the train split and of the test split; a single file is the train split, and
            files of a folder that bear these names are these splits.

    Returns:
        Split name -> data set.

    Raises:
        DataError: Nothing can be read there.
    """
    path = Path(location).expanduser()
    if location and path.is_file():
        return _load_files({split_names[0]: path})
    if location and path.is_dir():
        named = {name: file for name in split_names if name and (file := _file_named(path, name))}
        # Left to itself, `datasets` would take `oos_test.jsonl` for a part of "test".
        return _load_files(named) if split_names[0] in named else _load(str(path))
    if not location or _looks_like_path(location):
        raise DataError(
            FIELD,
            "no such file or folder",
            got=repr(location),
            expected="a json, jsonl, csv or parquet file, a folder, or a hub id such as 'owner/name'",
        )
    _reach_hub(location.partition(":")[0])
    return _load(*location.split(":", 1))


def _format_of(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _file_named(folder: Path, split: str) -> Path | None:
    # A split file carries the split's name and nothing else before its suffixes.
    files = [p for p in sorted(folder.iterdir()) if p.name.split(".")[0] == split and _format_of(p)]
    if len(files) > 1:
        raise DataError(
            f"{FIELD} {folder}",
            f"holds several files for split {split!r}",
            got=", ".join(file.name for file in files),
            remedy="keep one of them, or name the file itself",
        )
    return files[0] if files else None


def _looks_like_path(location: str) -> bool:
    return (
        location.startswith((".", "/", "~", "\\")) or location.count("/") > 1 or _format_of(Path(location)) is not None
    )


def _load_files(files: Mapping[str, Path]) -> "Mapping[str, Dataset]":
    # One call per file: read together, `datasets` would demand the same columns of train and test.
    return {split: _load_file(path) for split, path in files.items()}


def _load_file(path: Path) -> "Dataset":
    reader = _format_of(path)
    if reader is None:
        raise DataError(
            f"{FIELD} {path}",
            "unknown file format",
            got=path.suffix or "no ending",
            expected=f"one of {', '.join(FORMATS)}, each also with .gz",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{FIELD} {path}", "the file is empty", remedy="write it again, or name another")
    options = {"data_files": {"train": str(path)}, **READER_OPTIONS.get(reader, {})}
    return _load(reader, options=options, subject=str(path))["train"]


def _load(
    path: str, configuration: str | None = None, *, options: Mapping | None = None, subject: str = ""
) -> "Mapping[str, Dataset]":
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(path, configuration, **(options or {}))
    except (DatasetsError, OSError, ValueError, StopIteration) as error:
        # StopIteration is how `datasets` reports a json file without a single row.
        cause = str(error.__cause__ or error).splitlines()
        raise DataError(
            f"{FIELD} {subject or path}",
            f"cannot be read ({cause[0] if cause else 'no rows'})",
            expected="a json, jsonl, csv or parquet file, a folder of such files or of images, or a hub id",
            remedy="check the file, or the spelling of the hub id and its configuration",
        ) from error
    return cast("Mapping[str, Dataset]", loaded)


def _reach_hub(dataset_id: str) -> None:
    """Ask the hub for the data set once: `datasets` by itself tries for up to minutes before it gives up."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE") == "1":
        return
    # The bases of the hub's own error are whatever its HTTP client of the day raises when it cannot connect.
    unreachable = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        HfApi().dataset_info(dataset_id, timeout=HUB_TIMEOUT_S)
    except (OSError, *unreachable) as error:
        cause = str(error).splitlines()
        raise DataError(
            f"{FIELD} {dataset_id}",
            f"the hub does not answer for this id ({cause[0] if cause else type(error).__name__})",
            remedy="check the spelling and the network, name a local file or folder, "
            "or set HF_HUB_OFFLINE=1 to use a copy that was downloaded before",
        ) from error
