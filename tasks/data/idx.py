"""The four idx files of the MNIST family: header, checks, pixels.

Format: two zero bytes, the type code (8 = unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values in C order.

References:
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from tasks.data.labels import label_values, make_label_map, number_labels
from tasks.data.raw import RawData, RawSplit, SourceSpec
from tasks.data.splits import limit_rows
from tasks.errors import DataError

FIELD = "data.location"
UNSIGNED_BYTE = 8


def read_idx_folder(spec: SourceSpec) -> RawData:
    """Read a folder with the four files of an MNIST-like data set, plain or gzipped.

    Args:
        spec: `location` names the folder; only `limit` and `seed` are used besides.

    Returns:
        Images [N, H, W] float32 in [0, 1] and labels; the label names are the label bytes as text.

    Raises:
        DataError: A file is missing, damaged, or does not fit its partner.
    """
    folder = Path(spec.location).expanduser()
    if not spec.location or not folder.is_dir():
        raise DataError(
            FIELD, "is not a folder", got=repr(spec.location), expected="the folder that holds the idx files"
        )
    train_images, train_values = _read_pair(folder, "train")
    test_images, test_values = _read_pair(folder, "t10k")
    label_map = make_label_map(train_values, None)
    return RawData(
        train=_split(train_images, number_labels(train_values, label_map, "train"), spec),
        test=_split(test_images, number_labels(test_values, label_map, "t10k"), spec),
        label_names=label_map.names,
    )


def _split(images: np.ndarray, labels: np.ndarray, spec: SourceSpec) -> RawSplit:
    rows = limit_rows(len(labels), limit=spec.limit, seed=spec.seed)
    # Rows first, then floats: scaling 60,000 images to keep 500 would cost 190 MB.
    pixels = np.divide(images[rows], np.float32(255), dtype=np.float32)
    return RawSplit(images=pixels, labels=labels[rows], columns={"label": labels[rows]})


def _read_pair(folder: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(_find(folder, f"{stem}-images-idx3-ubyte"), num_dims=3)
    labels = read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"), num_dims=1)
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{FIELD} {folder}",
            f"the {stem} files do not belong together or are empty",
            got=f"{len(images)} images and {len(labels)} labels",
            remedy="download both files again from one place",
        )
    return images, label_values(labels, None, stem)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{FIELD} {folder}",
        f"has no file {name} or {name}.gz",
        got=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder",
        remedy="put all four idx files into this folder under their published names",
    )


def read_idx(path: Path, *, num_dims: int) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Args:
        path: The file; a name that ends in ".gz" is decompressed.
        num_dims: Number of dimensions it must have.

    Returns:
        uint8 array with the dimensions of the header; read-only.

    Raises:
        DataError: The file cannot be read or decompressed, or its header does not fit its contents.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{FIELD} {path}", f"cannot be read ({error})", remedy="download the file again") from error
    start = 4 + 4 * num_dims
    if data[:4] != bytes((0, 0, UNSIGNED_BYTE, num_dims)) or len(data) < start:
        raise DataError(
            f"{FIELD} {path}",
            "is not an idx file of unsigned bytes",
            got=f"first bytes {data[:4].hex(' ')}",
            expected=bytes((0, 0, UNSIGNED_BYTE, num_dims)).hex(" "),
        )
    shape = struct.unpack(f">{num_dims}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{FIELD} {path}",
            "is truncated, or holds more than its header says",
            got=f"{len(data) - start} bytes after the header",
            expected=f"{math.prod(shape)} for {' x '.join(map(str, shape))}",
            remedy="download the file again",
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
