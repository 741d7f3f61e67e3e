"""Data that cannot be read as asked are refused by field, in words, and without a long wait."""

import json
import socket
import time

import pytest

from tasks.data.sources import SourceSpec, read_source
from tasks.errors import DataError

pytestmark = pytest.mark.usefixtures("hub_cache")

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(12)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    return tmp_path


def write(folder, name, rows):
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))


def refused(location, **options):
    with pytest.raises(DataError) as caught:
        read_source("hub", SourceSpec(location=str(location), **{"text_column": "text", **options}))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("data.columns.label", {"label_column": "lable"}),
        ("data.columns.text", {"text_column": "txt"}),
        ("data.columns.text_pair", {"text_pair_column": "txt"}),
        ("data.columns.prompt", {"prompt_column": "txt"}),
        ("data.columns.image", {"image_column": "txt"}),
        ("data.columns.text", {"text_column": ""}),
    ],
)
def test_missing_column_lists_the_columns_there_are(folder, field, options):
    message = refused(folder, **options)
    assert message.startswith(f"{field}: ")
    assert "expected one of text, label" in message


@pytest.mark.parametrize(
    ("field", "options"),
    [("data.train_split", {"train_split": "training"}), ("data.test_split", {"test_split": "validation"})],
)
def test_missing_split_lists_the_splits_there_are(folder, field, options):
    message = refused(folder, **options)
    assert message.startswith(f"{field}: no such split")
    assert "expected one of train" in message


def test_train_split_cannot_be_the_test_split(folder):
    assert refused(folder, test_split="train").startswith("data.test_split: is the train split")


def test_test_label_outside_the_train_map_is_refused(folder):
    write(folder, "test.jsonl", [{"text": "x", "label": 1}, {"text": "y", "label": 5}])
    message = refused(folder)
    assert message.startswith("data.columns.label: split 'test' has a label that the train split does not have")
    assert "5 in row 1" in message


def test_out_of_scope_label_is_explained(folder):
    write(folder, "test.jsonl", [{"text": "x", "label": 1}, {"text": "y", "label": -1}])
    message = refused(folder)
    assert message.startswith("data.columns.label: split 'test' has a negative label")
    assert "'out of scope'" in message


def test_missing_text_names_its_row(folder):
    write(folder, "test.jsonl", [{"text": "x", "label": 1}, {"text": None, "label": 0}])
    assert refused(folder).startswith("data.columns.text: row 1 of column 'text' holds no text")


def test_text_column_of_numbers_is_refused(folder):
    message = refused(folder, text_column="label")
    assert message.startswith("data.columns.text: row 0 of column 'label' holds no text; got int")


def test_image_column_without_images_is_refused(folder):
    message = refused(folder, image_column="text", text_column="")
    assert message.startswith("data.columns.image: column 'text' holds no images")


def test_label_with_one_example_cannot_be_cut(folder):
    write(folder, "train.jsonl", [*ROWS, {"text": "lonely", "label": 2}])
    assert refused(folder).startswith("data.test_frac: cannot cut a test split off 13 examples")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.json", "{not json", "cannot be read"),
        ("rows.jsonl", "", "the file is empty"),
        ("rows.json", "[]", "cannot be read"),
        ("rows.csv", "text,label\n", "corresponds to no data"),
        ("rows.parquet", "no parquet", "cannot be read"),
        ("rows.jsonl.gz", "no gzip", "cannot be read"),
        ("rows.txt", "text", "unknown file format; got .txt; expected one of .json, .jsonl, .csv, .parquet"),
        ("rows", "text", "unknown file format; got no ending"),
    ],
)
def test_unreadable_file_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    message = refused(tmp_path / name)
    assert message.startswith(("data.location", "data.train_split"))
    assert problem in message


def test_folder_with_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in refused(tmp_path / "empty")


def test_two_files_for_one_split_are_refused(folder):
    (folder / "train.csv").write_text("text,label\nx,1\n")
    message = refused(folder)
    assert "holds several files for split 'train'; got train.csv, train.jsonl" in message


@pytest.mark.parametrize(
    "location", ["", "no/such/file.csv", "./nowhere", "/nowhere", "~/nowhere-at-all", "typo.jsonl"]
)
def test_missing_path_is_not_taken_for_a_hub_id(location):
    assert refused(location).startswith("data.location: no such file or folder")


def test_hub_id_that_was_never_downloaded_is_refused_at_once_when_offline():
    message = refused("nobody/nothing:default")
    assert message.startswith("data.location nobody/nothing")
    assert "hub id" in message


def test_hub_that_does_not_answer_is_given_up_soon(monkeypatch):
    # A listening socket that accepts nothing: the request connects and then waits for ever.
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setattr("tasks.data.hub_files.HUB_TIMEOUT_S", 0.2)
    started = time.monotonic()
    with silent:
        message = refused("nobody/nothing")
    assert time.monotonic() - started < 10
    assert "the hub does not answer for this id" in message
    assert "HF_HUB_OFFLINE=1" in message
