"""Raw splits -> what a model's `forward` takes: one function per kind of model, one table.

Reading data is in `sources.py`; the tokenizer or image processor comes with the base model and is passed in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from tasks.data.causal import causal_tokens
from tasks.data.examples import Examples, TensorExamples, TokenExamples
from tasks.data.raw import RawSplit
from tasks.errors import DataError, UnknownNameError


@dataclass(frozen=True)
class PrepareSpec:
    """What the base model asks of its inputs.

    Args:
        processor: Its tokenizer or image processor; None for mlp and cnn.
        max_length: Most tokens of an example [tokens].
        input_shape: (C, H, W) of mlp and cnn; empty takes the images as they are.
    """

    processor: Any
    max_length: int
    input_shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ImageExamples:
    """Images that go through a transformers image processor when a batch asks for them.

    A processed image is several hundred kB, so a data set of them would not fit into memory.

    Args:
        images: As in `RawSplit`.
        labels: [N] int64.
        processor: Image processor of the base model.
    """

    images: np.ndarray | Sequence[Image.Image]
    labels: torch.Tensor
    processor: Any

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the examples at these positions.

        Args:
            indices: [B] positions.

        Returns:
            `pixel_values` [B, C, H, W] as the processor makes them, and `labels` [B].

        Raises:
            DataError: An image cannot be decoded.
        """
        rows = [int(index) for index in indices]
        pictures = [_picture(self.images, row, "RGB") for row in rows]
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": self.labels[torch.as_tensor(rows, dtype=torch.long)]}


def _pixels(split: RawSplit, spec: PrepareSpec) -> Examples:
    images, labels = _images(split), _labels(split)
    if isinstance(images, np.ndarray):
        channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    else:
        channels_first = _decoded(images, _mode(images, spec.input_shape))
    if spec.input_shape and channels_first.shape[1:] != tuple(spec.input_shape):
        raise DataError(
            "model.input_shape",
            "does not fit the images",
            got=tuple(spec.input_shape),
            expected=f"{channels_first.shape[1:]}, the images' channels, height and width",
        )
    pixels = torch.from_numpy(np.ascontiguousarray(channels_first, dtype=np.float32))
    return TensorExamples({"pixel_values": pixels, "labels": labels})


def _processed_images(split: RawSplit, spec: PrepareSpec) -> Examples:
    return ImageExamples(_images(split), _labels(split), spec.processor)


def _classified_texts(split: RawSplit, spec: PrepareSpec) -> Examples:
    texts, labels = _texts(split), _labels(split)
    encoded = spec.processor(texts, split.text_pairs, truncation=True, max_length=spec.max_length)
    input_ids: list[list[int]] = encoded["input_ids"]
    empty = [row for row, ids in enumerate(input_ids) if not ids]
    if empty:
        raise DataError(
            "data.columns.text",
            f"row {empty[0]} gives no token",
            got=f"{len(empty)} such rows",
            expected="at least one token in every row",
            remedy="remove rows without text",
        )
    return TokenExamples(input_ids, labels.tolist(), _pad_id(spec.processor))


def _continued_texts(split: RawSplit, spec: PrepareSpec) -> Examples:
    tokens = causal_tokens(_texts(split), split.prompts, spec.processor, max_length=spec.max_length)
    return TokenExamples(tokens.input_ids, tokens.labels, _pad_id(spec.processor))


PREPARERS: Mapping[str, Callable[[RawSplit, PrepareSpec], Examples]] = {
    "mlp": _pixels,
    "cnn": _pixels,
    "image_classification": _processed_images,
    "sequence_classification": _classified_texts,
    "causal_lm": _continued_texts,
}


def prepare_examples(
    split: RawSplit,
    *,
    kind: str,
    processor: Any = None,
    max_length: int = 128,
    input_shape: Sequence[int] = (),
) -> Examples:
    """Make a split ready for a kind of model.

    Args:
        split: Images or texts with labels; prompts for causal models are optional.
        kind: A name of `PREPARERS`: the kind of model.
        processor: Tokenizer or image processor of the base model; not used by mlp and cnn.
        max_length: Most tokens of an example; longer ones are cut [tokens].
        input_shape: (C, H, W) that mlp and cnn expect; empty takes the images as they are.

    Returns:
        Examples with `pixel_values` [N, C, H, W] float32 and `labels` [N], or token sequences with labels.
        For causal models tokens of the prompt carry the label -100 and the sequence ends in the end-of-text
        token.

    Raises:
        UnknownNameError: No such kind.
        DataError: The split holds the wrong thing for this kind, or an example leaves nothing to learn from.
    """
    if kind not in PREPARERS:
        raise UnknownNameError("model.kind", kind, PREPARERS)
    if len(split) == 0:
        raise DataError("data.source", f"there is nothing to prepare for {kind}", got="an empty split")
    limit = getattr(processor, "model_max_length", max_length)
    if not 1 <= max_length <= limit:
        raise DataError("model.max_length", "out of bounds", got=max_length, expected=f"1 to {limit} tokens")
    return PREPARERS[kind](split, PrepareSpec(processor, max_length, tuple(input_shape)))


def _images(split: RawSplit) -> np.ndarray | Sequence[Image.Image]:
    if split.images is None:
        raise DataError(
            "data.columns.image", "this model takes images, and the data have none", remedy="name their column"
        )
    return split.images


def _texts(split: RawSplit) -> list[str]:
    if split.texts is None:
        raise DataError(
            "data.columns.text", "this model takes texts, and the data have none", remedy="name their column"
        )
    return split.texts


def _labels(split: RawSplit) -> torch.Tensor:
    if split.labels is None:
        raise DataError(
            "data.columns.label", "this model needs labels, and the data have none", remedy="name their column"
        )
    return torch.from_numpy(split.labels.astype(np.int64))


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.pad_token_id is None:
        raise DataError(
            "model.location", "its tokenizer has no padding token", remedy="set one, for instance its end-of-text token"
        )
    return int(tokenizer.pad_token_id)


def _mode(images: Sequence[Image.Image], input_shape: tuple[int, ...]) -> str:
    if input_shape:
        return "L" if input_shape[0] == 1 else "RGB"
    return "L" if images[0].mode in ("1", "L") else "RGB"


def _decoded(images: Sequence[Image.Image], mode: str) -> np.ndarray:
    pictures = [np.asarray(_picture(images, row, mode)) for row in range(len(images))]
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise DataError(
            "data.columns.image",
            "images differ in size, and this model takes one size",
            got=", ".join(str(shape) for shape in sorted(shapes)[:4]),
            remedy="resize the images, or use a transformers model, whose processor resizes",
        )
    stacked = np.stack(pictures).astype(np.float32) / 255
    return stacked[:, None] if mode == "L" else stacked.transpose(0, 3, 1, 2)


def _picture(images: np.ndarray | Sequence[Image.Image], row: int, mode: str) -> Image.Image:
    if isinstance(images, np.ndarray):
        return Image.fromarray(np.rint(images[row] * 255).astype(np.uint8)).convert(mode)
    try:
        return images[row].convert(mode)
    except OSError as error:
        raise DataError(
            "data.columns.image", f"row {row} is no image that can be read ({error})", remedy="replace or remove it"
        ) from error
