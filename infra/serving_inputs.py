"""What a served model may be given: frames, arrays, lists; and what is wrong with it if it does not fit.

What lives here: reading columns, pixels and pictures out of whatever MLflow hands over. What does not: models.
"""

import base64
import binascii
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def read_pixels(model_input: Any, shape: tuple[int, ...]) -> "np.ndarray":
    """Read pictures given as numbers.

    Args:
        model_input: Frame of flattened pixels, or array or nested list [N, ...], values 0 to 1.
        shape: (C, H, W) of one picture.

    Returns:
        float32 [N, C, H, W].

    Raises:
        DataError: Not numbers, of another size, or outside 0 to 1; names row and column.
    """
    import numpy as np

    size = math.prod(shape)
    try:
        pixels = np.asarray(model_input, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(_first_text_column(model_input), "must hold numbers only", got=error) from error
    if pixels.ndim < 2 or math.prod(pixels.shape[1:]) != size:
        raise DataError(
            "pixels",
            "do not fit the model",
            got=f"shape {pixels.shape}",
            expected=f"[N, {size}] or [N, {', '.join(map(str, shape))}]",
        )
    pixels = pixels.reshape(len(pixels), *shape)
    # Comparing this way round also refuses NaN.
    outside = ~((pixels >= 0) & (pixels <= 1)).reshape(len(pixels), size)
    if outside.any():
        row, column = np.argwhere(outside)[0].tolist()
        name = column_names(model_input)[column] if column_names(model_input) else column
        raise DataError(
            f"pixel column {name}, row {row}",
            "lies outside 0 to 1",
            got=pixels.reshape(len(pixels), size)[row, column],
            remedy="divide 8-bit pixels by 255, and fill what is missing",
        )
    return pixels


def column_names(model_input: Any) -> list[str]:
    """Return the columns of a frame, nothing for anything else.

    Args:
        model_input: What the model was given.

    Returns:
        Names in order.
    """
    return [str(name) for name in getattr(model_input, "columns", [])]


def _first_text_column(model_input: Any) -> str:
    if not hasattr(model_input, "select_dtypes"):
        return "pixels"
    return f"pixel column {next(iter(model_input.select_dtypes(exclude='number').columns), '')}"


def _column(model_input: Any, column: str) -> list[Any]:
    if not hasattr(model_input, "columns"):
        return [model_input] if isinstance(model_input, (str, bytes)) else list(model_input)
    if column not in column_names(model_input):
        raise DataError(
            f"column {column}",
            "is missing",
            got=", ".join(column_names(model_input)) or "no columns",
            remedy=f"name the column {column}",
        )
    return model_input[column].tolist()


def read_strings(model_input: Any, column: str) -> list[str]:
    """Read one text per row.

    Args:
        model_input: Frame with that column, or one string, or several.
        column: Name of the column.

    Returns:
        The texts.

    Raises:
        DataError: The column is missing or holds something else; names it and the row.
    """
    values = _column(model_input, column)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"column {column}, row {row}", "must be text", got=f"{type(value).__name__} {value}")
    return values


def read_images(model_input: Any) -> "list[Image]":
    """Read one picture per row.

    Args:
        model_input: Frame with column `image`, or a sequence, of encoded files (bytes or base64), arrays
            [H, W, C], [C, H, W] or [H, W] (8-bit, or 0 to 1), or PIL images.

    Returns:
        RGB pictures.

    Raises:
        DataError: The column is missing, or a row is no picture; names column and row.
    """
    values: Sequence[Any] = _column(model_input, "image")
    return [_image(value, row) for row, value in enumerate(values)]


def _image(value: Any, row: int) -> "Image":
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    subject = f"column image, row {row}"
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    try:
        if isinstance(value, np.ndarray):
            return Image.fromarray(_eight_bit(value, subject)).convert("RGB")
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, TypeError, OSError) as error:
        raise DataError(subject, "is no image", got=error, expected="bytes, base64, or an array") from error


def _eight_bit(pixels: "np.ndarray", subject: str) -> "np.ndarray":
    import numpy as np

    if pixels.ndim == 3 and pixels.shape[0] in {1, 3} and pixels.shape[2] not in {1, 3}:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype == np.uint8:
        return pixels
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise DataError(subject, "lies outside 0 to 1", remedy="pass 8-bit integers, or divide by 255")
    return np.rint(pixels * 255).astype(np.uint8)
