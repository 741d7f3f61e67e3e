"""Seeded choices of rows: cutting off a test split, and keeping only so many examples."""

import numpy as np

from tasks.errors import DataError


def cut_test(
    num_examples: int, labels: np.ndarray | None, *, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a split in two, keeping the mix of labels in both.

    Args:
        num_examples: Number of examples, N.
        labels: [N] label numbers to stratify by; None cuts at random.
        test_fraction: Share of the test part [fraction], above 0 and below 1.
        seed: Seed of the cut; not negative.

    Returns:
        Sorted rows of the train part and of the test part, disjoint and together all rows.

    Raises:
        DataError: The fraction is out of bounds, or leaves a part or a label without examples.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < test_fraction < 1:
        raise DataError("data.test_frac", "out of bounds", got=test_fraction, expected="between 0 and 1")
    # scikit-learn wants 32 bits; seeds of runs may be longer.
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    rows = np.arange(num_examples)
    try:
        train, test = train_test_split(rows, test_size=test_fraction, random_state=state, stratify=labels)
    except ValueError as error:
        raise DataError(
            "data.test_frac",
            f"cannot cut a test split off {num_examples} examples with every label in both parts ({error})",
            got=test_fraction,
            remedy="name a test split (data.test_split), or drop labels with one example",
        ) from error
    return np.sort(train), np.sort(test)


def limit_rows(num_examples: int, *, limit: int, seed: int) -> np.ndarray:
    """Choose at most `limit` rows without looking at them.

    Args:
        num_examples: Number of examples, N.
        limit: Most rows to keep; 0 keeps all.
        seed: Seed of the draw; not negative.

    Returns:
        Sorted rows.

    Raises:
        DataError: The limit is negative.
    """
    if limit < 0:
        raise DataError("data.limit", "is negative", got=limit, expected="0 (all) or more")
    if limit in (0, num_examples) or limit > num_examples:
        return np.arange(num_examples)
    return np.sort(np.random.default_rng(seed).choice(num_examples, size=limit, replace=False))
