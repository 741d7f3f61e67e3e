"""Files, folders and hub ids that `datasets` reads: what comes out, and which split is which."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from tasks.data.sources import SourceSpec, read_source

pytestmark = pytest.mark.usefixtures("hub_cache")

ROWS = [{"text": f"row {i}", "label": "abc"[i % 3], "site": f"s{i % 2}", "score": i} for i in range(24)]


def as_json(rows):
    return json.dumps(rows).encode()


def as_jsonl(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_csv(rows):
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    return "\n".join(lines).encode()


def as_parquet(rows):
    import io

    import pandas as pd

    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer)
    return buffer.getvalue()


def read(location, **options):
    return read_source("hub", SourceSpec(location=str(location), **{"text_column": "text", **options}))


def write_jsonl(path, rows):
    path.write_bytes(as_jsonl(rows))
    return path


@pytest.mark.parametrize(
    ("ending", "encode"),
    [
        ("json", as_json),
        ("jsonl", as_jsonl),
        ("csv", as_csv),
        ("parquet", as_parquet),
        ("jsonl.gz", lambda rows: gzip.compress(as_jsonl(rows))),
        ("csv.gz", lambda rows: gzip.compress(as_csv(rows))),
    ],
)
def test_one_file_becomes_train_and_test_without_loss(tmp_path, ending, encode):
    path = tmp_path / f"anything.{ending}"
    path.write_bytes(encode(ROWS))
    data = read(path)
    assert data.label_names == ("a", "b", "c")
    assert (len(data.train), len(data.test)) == (18, 6)
    found = {
        (text, data.label_names[label], site)
        for split in (data.train, data.test)
        for text, label, site in zip(split.texts, split.labels, split.columns["site"], strict=True)
    }
    assert found == {(row["text"], row["label"], row["site"]) for row in ROWS}
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert set(data.train.columns) == {"label", "site", "score"}


def test_cut_depends_on_the_seed_alone(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert read(path, seed=1).test.texts == read(path, seed=1).test.texts
    assert read(path, seed=1).test.texts != read(path, seed=2).test.texts


def test_files_named_after_the_splits_are_the_splits(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    # Columns need not be the same, e.g. a title that only the test rows have.
    write_jsonl(tmp_path / "test.jsonl", [{**row, "title": "x"} for row in ROWS[:3]])
    # `datasets` would count this file as part of "test".
    write_jsonl(tmp_path / "oos_test.jsonl", [{"text": "out of scope", "label": "z", "site": "s0", "score": 0}])
    (tmp_path / "labels.json").write_text('["a", "b", "c"]')
    data = read(tmp_path)
    assert (len(data.train), data.test.texts) == (24, ["row 0", "row 1", "row 2"])


def test_other_split_names_can_be_asked_for(tmp_path):
    write_jsonl(tmp_path / "train5k.jsonl", ROWS)
    (tmp_path / "dev.csv").write_bytes(as_csv(ROWS[:6]))
    data = read(tmp_path, train_split="train5k", test_split="dev")
    assert (len(data.train), len(data.test)) == (24, 6)


def test_empty_test_split_cuts_even_where_there_is_one(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "test.jsonl", [{**ROWS[0], "label": None}])
    data = read(tmp_path, test_split="")
    assert (len(data.train), len(data.test)) == (18, 6)


def test_limit_keeps_rows_together(tmp_path):
    data = read(write_jsonl(tmp_path / "rows.jsonl", ROWS), limit=5)
    assert (len(data.train), len(data.test)) == (5, 5)
    known = {row["text"]: (row["label"], row["score"]) for row in ROWS}
    for text, label, score in zip(data.train.texts, data.train.labels, data.train.columns["score"], strict=True):
        assert known[text] == (data.label_names[label], score)


def test_limit_does_not_shrink_the_label_map(tmp_path):
    data = read(write_jsonl(tmp_path / "rows.jsonl", ROWS), limit=1)
    assert data.label_names == ("a", "b", "c")


def test_data_without_labels_keep_prompts_and_texts(tmp_path):
    rows = [{"ask": f"q{i}", "reply": f"a{i}", "topic": "x"} for i in range(8)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = read(path, label_column="", text_column="reply", prompt_column="ask")
    assert data.train.labels is None
    assert data.label_names == ()
    assert [text.replace("a", "q") for text in data.train.texts] == data.train.prompts
    assert set(data.train.columns) == {"topic"}


def test_text_pairs_stay_beside_their_texts(tmp_path):
    rows = [{"one": f"a{i}", "two": f"b{i}", "label": i % 2} for i in range(8)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = read(path, text_column="one", text_pair_column="two")
    assert [text.replace("a", "b") for text in data.train.texts] == data.train.text_pairs


def test_only_an_empty_csv_cell_is_missing(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "NA,null\nnone,NA\n" * 4)
    data = read(tmp_path / "rows.csv")
    assert data.label_names == ("NA", "null")
    assert set(data.train.texts) == {"NA", "none"}


def test_rewritten_file_is_read_anew(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert len(read(path).train) == 18
    write_jsonl(path, ROWS[:12])
    assert len(read(path).train) == 9


def test_image_folder_gives_images_with_the_names_of_its_folders(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for shade, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (6, 5), 100 * shade + number).save(folder / f"{number}.png")
    data = read(tmp_path / "pets", text_column="", image_column="image")
    assert data.label_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (8, 4)
    shades = [image.getpixel((0, 0)) // 100 for image in data.train.images]
    assert shades == data.train.labels.tolist()
    assert set(data.train.columns) == {"label"}
