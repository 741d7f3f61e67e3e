"""What every source hands over: raw splits, before any model's own preparation.

Here are values only. Reading them is in `sources.py` and its neighbours, making tensors of them in
`prepare.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class RawSplit:
    """One split of a data set as it was read; row i of every part belongs to example i.

    Args:
        images: [N, H, W] or [N, H, W, C] float32 in [0, 1], or a sequence of PIL images (decoded on access).
        texts: Text to classify, or the completion that a causal model learns.
        text_pairs: Second text of a pair.
        prompts: Prompt that comes before the completion in `texts`.
        labels: [N] int64, positions in the label names; None for data without labels.
        columns: Column name -> values, for natural partitions; everything but texts and images.
    """

    images: np.ndarray | Sequence[Image.Image] | None = None
    texts: list[str] | None = None
    text_pairs: list[str] | None = None
    prompts: list[str] | None = None
    labels: np.ndarray | None = None
    columns: Mapping[str, Sequence | np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        parts = (self.labels, self.texts, self.images)
        return next((len(part) for part in parts if part is not None), 0)


@dataclass(frozen=True, eq=False)
class RawData:
    """A data set as it was read.

    Args:
        train: What is partitioned over the clients.
        test: What the server evaluates on.
        label_names: Name of every label, in the order of the label numbers; empty for data without labels.
    """

    train: RawSplit
    test: RawSplit
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class SourceSpec:
    """Where data lie and which part of them is meant; an empty text means "none".

    Args:
        location: File, folder or hub id (`name` or `name:configuration`); not used by the bundled digits.
        text_column: Column of the text, or of the completion for causal models.
        text_pair_column: Column of the second text of a pair.
        label_column: Column of the label; empty for data without labels.
        prompt_column: Column of the prompt that comes before the completion.
        image_column: Column of the image; image folders call it "image".
        train_split: Name of the split that clients train on.
        test_split: Name of the split to evaluate on. "test" is used where there is one and cut off the train
            split where there is none; empty always cuts; any other name must exist.
        test_fraction: Share of the train split that is cut off when there is no test split [fraction].
        limit: Most examples to keep of each split, drawn by the seed; 0 keeps all.
        seed: Seed of the cut and of the limit; not negative.
    """

    location: str = ""
    text_column: str = ""
    text_pair_column: str = ""
    label_column: str = "label"
    prompt_column: str = ""
    image_column: str = ""
    train_split: str = "train"
    test_split: str = "test"
    test_fraction: float = 0.25
    limit: int = 0
    seed: int = 0
