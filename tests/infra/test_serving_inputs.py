import base64

import numpy as np
import pandas as pd
import pytest

from infra.serving_inputs import read_images, read_pixels, read_strings
from tasks.errors import DataError

SHAPE = (1, 2, 3)
PIXELS = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6)


@pytest.mark.parametrize(
    "given",
    [PIXELS, PIXELS.tolist(), pd.DataFrame(PIXELS), PIXELS.reshape(2, 2, 3), PIXELS.reshape(2, 1, 2, 3)],
    ids=["array", "list", "frame", "pictures", "channels"],
)
def test_pixels_come_out_alike_however_they_are_given(given):
    np.testing.assert_array_equal(read_pixels(given, SHAPE), PIXELS.reshape(2, 1, 2, 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 5)), r"pixels: do not fit the model; got shape \(2, 5\); expected \[N, 6\] or \[N, 1, 2, 3\]"),
        (np.zeros(6), "do not fit"),
        (np.full((1, 6), 17.0), "pixel column 0, row 0: lies outside 0 to 1; got 17"),
        (pd.DataFrame(np.eye(6) * -1).add_prefix("p").iloc[3:], "pixel column p3, row 0"),
        (pd.DataFrame({**{str(i): [0.0, 0.0] for i in range(5)}, "last": [1.0, np.nan]}), "column last, row 1"),
        (pd.DataFrame(np.zeros((1, 5))).assign(name="x"), "pixel column name: must hold numbers only"),
        ([["a", "b"]], "pixels: must hold numbers only"),
    ],
    ids=["size", "no-rows", "eight-bit", "negative", "missing", "text-column", "text"],
)
def test_bad_pixels_are_refused_by_column_and_row(given, message):
    with pytest.raises(DataError, match=message):
        read_pixels(given, SHAPE)


@pytest.mark.parametrize(
    "given",
    [pd.DataFrame({"text": ["a", "b"]}), ["a", "b"], np.array(["a", "b"]), pd.Series(["a", "b"])],
    ids=["frame", "list", "array", "series"],
)
def test_texts_come_out_alike_however_they_are_given(given):
    assert read_strings(given, "text") == ["a", "b"]


def test_one_string_is_one_row():
    assert read_strings("a b", "text") == ["a b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"review": ["good"]}), "column text: is missing; got review; name the column text"),
        (pd.DataFrame(), "got no columns"),
        (pd.DataFrame({"text": ["good", np.nan]}), "column text, row 1: must be text; got float nan"),
        (["good", 3], "column text, row 1: must be text; got int 3"),
    ],
    ids=["other-column", "empty", "missing", "number"],
)
def test_bad_texts_are_refused_by_column_and_row(given, message):
    with pytest.raises(DataError, match=message):
        read_strings(given, "text")


def test_grey_pictures_become_rgb():
    grey = np.array([[0, 128], [255, 7]], dtype=np.uint8)
    for given in ([grey], grey[None, :, :, None], grey[None, None], [grey / 255]):
        (picture,) = read_images(given)
        np.testing.assert_array_equal(np.asarray(picture), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("broken", [b"no picture", "!!", 7, base64.b64encode(b"no picture").decode()])
def test_bad_images_are_refused_by_row(broken):
    with pytest.raises(DataError, match="column image, row 0: is no image"):
        read_images(pd.DataFrame({"image": [broken]}))


def test_image_arrays_outside_their_range_are_refused():
    with pytest.raises(DataError, match="row 0: lies outside 0 to 1"):
        read_images(np.full((1, 4, 4, 3), 2.5))
