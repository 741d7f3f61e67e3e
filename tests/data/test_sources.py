"""The bundled digits and idx files."""

import gzip
import struct

import numpy as np
import pytest

from tasks.data.sources import SourceSpec, read_source
from tasks.errors import DataError, UnknownNameError


def idx_bytes(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    for stem, count in (("train", 20), ("t10k", 6)):
        images = rng.integers(0, 256, size=(count, 4, 5))
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        labels = gzip.compress(idx_bytes(np.arange(count) % 3))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(labels)
    return tmp_path


def refused(name, **options):
    with pytest.raises(DataError) as caught:
        read_source(name, SourceSpec(**options))
    return str(caught.value)


def test_unknown_source_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"data\.source 'digit'.*digits, hub, idx"):
        read_source("digit", SourceSpec())


def test_digits_are_split_by_label_in_equal_shares_and_scaled():
    data = read_source("digits", SourceSpec(seed=3))
    assert (len(data.train), len(data.test)) == (1347, 450)
    assert data.train.images.shape == (1347, 8, 8)
    assert data.train.images.dtype == np.float32
    assert (data.train.images.min(), data.train.images.max()) == (0.0, 1.0)
    assert data.label_names == tuple("0123456789")
    shares = np.bincount(data.test.labels) / (np.bincount(data.test.labels) + np.bincount(data.train.labels))
    assert np.allclose(shares, 0.25, atol=0.01)


def test_digits_cut_depends_on_the_seed_alone():
    one, again, other = (read_source("digits", SourceSpec(seed=seed)) for seed in (1, 1, 2**40))
    assert np.array_equal(one.test.images, again.test.images)
    assert not np.array_equal(one.test.images, other.test.images)


def test_digits_train_and_test_together_are_the_whole_set():
    from sklearn.datasets import load_digits

    data = read_source("digits", SourceSpec())
    ours = np.concatenate([data.train.images, data.test.images]).reshape(-1, 64) * 16
    theirs, _ = load_digits(return_X_y=True)
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_limit_keeps_so_many_of_each_split():
    data = read_source("digits", SourceSpec(limit=50))
    assert (len(data.train), len(data.test), len(data.train.columns["label"])) == (50, 50, 50)
    assert len(read_source("digits", SourceSpec(limit=10**6)).train) == 1347


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("data.test_frac", {"test_fraction": 0.0}),
        ("data.test_frac", {"test_fraction": 1.5}),
        ("data.test_frac", {"test_fraction": 0.001}),
        ("data.limit", {"limit": -1}),
    ],
)
def test_digits_refuse_bad_options_by_field(field, options):
    assert refused("digits", **options).startswith(f"{field}: ")


def test_idx_files_plain_and_gzipped_read_alike(idx_folder):
    data = read_source("idx", SourceSpec(location=str(idx_folder)))
    assert data.train.images.shape == (20, 4, 5)
    assert data.train.images.dtype == np.float32
    raw = np.frombuffer((idx_folder / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    assert np.array_equal(np.rint(data.train.images.ravel() * 255), raw)
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.label_names == ("0", "1", "2")


def test_idx_limit_keeps_images_with_their_labels(idx_folder):
    whole = read_source("idx", SourceSpec(location=str(idx_folder))).train
    part = read_source("idx", SourceSpec(location=str(idx_folder), limit=7)).train
    assert len(part) == 7
    for image, label in zip(part.images, part.labels, strict=True):
        row = np.flatnonzero((whole.images == image).all(axis=(1, 2)))
        assert whole.labels[row].tolist() == [label]


def test_idx_label_of_the_test_files_alone_is_refused(idx_folder):
    labels = gzip.compress(idx_bytes(np.array([0, 1, 2, 0, 1, 7])))
    (idx_folder / "t10k-labels-idx1-ubyte.gz").write_bytes(labels)
    message = refused("idx", location=str(idx_folder))
    assert message.startswith("data.columns.label: split 't10k' has a label that the train split does not have")
    assert "7 in row 5" in message


@pytest.mark.parametrize("location", ["", "no/such/folder"])
def test_idx_needs_a_folder(location):
    assert refused("idx", location=location).startswith("data.location: is not a folder")


def test_idx_missing_file_is_named(idx_folder):
    (idx_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    message = refused("idx", location=str(idx_folder))
    assert "data.location" in message
    assert "has no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz" in message


def with_last_byte_cut(data):
    return data[:-1]


def with_another_type_code(data):
    return data[:2] + b"\x0d" + data[3:]


def with_one_image_less(_):
    return idx_bytes(np.zeros((19, 4, 5)))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (with_last_byte_cut, "is truncated, or holds more than its header says; got 399 bytes"),
        (with_another_type_code, "is not an idx file of unsigned bytes; got first bytes 00 00 0d 03"),
        (with_one_image_less, "do not belong together or are empty; got 19 images and 20 labels"),
        (lambda _: b"", "is not an idx file"),
    ],
)
def test_damaged_idx_file_is_refused(idx_folder, damage, problem):
    path = idx_folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    assert problem in refused("idx", location=str(idx_folder))


@pytest.mark.parametrize("damage", [with_last_byte_cut, lambda _: b"not gzip at all", lambda d: d[:12] + b"\0" * 9])
def test_damaged_gzip_is_refused(idx_folder, damage):
    path = idx_folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    message = refused("idx", location=str(idx_folder))
    assert "data.location" in message
    assert "download the file again" in message
