"""Reading data sets: one table, one function per kind of source, one form for what comes out.

The bundled digits live here; idx files are in `idx.py`, everything that `datasets` reads in `hub.py`. Nothing
here knows about models or clients.
"""

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

from tasks.data.hub import read_hub
from tasks.data.idx import read_idx_folder
from tasks.data.raw import RawData, RawSplit, SourceSpec
from tasks.data.splits import cut_test, limit_rows
from tasks.errors import UnknownNameError

__all__ = ["SOURCES", "RawData", "RawSplit", "SourceSpec", "read_digits", "read_source"]


def read_digits(spec: SourceSpec) -> RawData:
    """Read the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries.

    Args:
        spec: `test_fraction`, `limit` and `seed` are used.

    Returns:
        Images [N, 8, 8] float32 in [0, 1], labels 0 to 9, test part stratified by label.

    Raises:
        DataError: The test fraction or the limit is out of bounds.

    References:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
        1998, https://doi.org/10.24432/C50P49; scikit-learn carries its test part.
    """
    from sklearn.datasets import load_digits

    bunch = cast("Mapping[str, np.ndarray]", load_digits())
    images, labels = (bunch["images"] / 16).astype(np.float32), bunch["target"].astype(np.int64)
    parts = cut_test(len(labels), labels, test_fraction=spec.test_fraction, seed=spec.seed)
    kept = [part[limit_rows(len(part), limit=spec.limit, seed=spec.seed)] for part in parts]
    train, test = (RawSplit(images=images[r], labels=labels[r], columns={"label": labels[r]}) for r in kept)
    return RawData(train, test, tuple(str(name) for name in bunch["target_names"]))


SOURCES: Mapping[str, Callable[[SourceSpec], RawData]] = {
    "digits": read_digits,
    "idx": read_idx_folder,
    "hub": read_hub,
}


def read_source(name: str, spec: SourceSpec) -> RawData:
    """Read a data set.

    Args:
        name: A name of `SOURCES`.
        spec: Where it lies and which part of it is meant.

    Returns:
        Train and test split with one shared label map; neither is empty.

    Raises:
        UnknownNameError: No such source.
        DataError: The data cannot be read as asked; the message names the config field, `data.columns.label`
            say.
    """
    if name not in SOURCES:
        raise UnknownNameError("data.source", name, SOURCES)
    return SOURCES[name](spec)
