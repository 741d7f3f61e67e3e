"""Worked numbers and bounds of every grid, and the stall that the guard cures."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.codecs.affine import Affine
from tasks.codecs.codec import Trip
from tasks.codecs.cursor import Cursor
from tasks.codecs.lazy_grids import Adaptive, Uniform
from tasks.codecs.quantiser import Floats, Quantiser
from tasks.codecs.runs import Runs
from tasks.codecs.symmetric import Symmetric
from tests.oracles import codecs as oracle

V = (0.9, -0.3, 0.1, -0.7)
TRIP = Trip(1, 5)
laws = settings(max_examples=60, derandomize=True, deadline=None)
numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


def runs(*lengths: int) -> Runs:
    return Runs(np.array(lengths, np.int64), np.zeros(len(lengths), np.bool_))


def there_and_back(grid: Quantiser, values, *lengths: int, trip: Trip = TRIP) -> np.ndarray:
    array = np.array(values, np.float32)
    kept = runs(*(lengths or (array.size,)))
    cursor = Cursor(grid.write(array, kept, trip))
    back = grid.read(cursor, kept)
    cursor.end()
    assert back.dtype == np.float32
    return back


@pytest.mark.parametrize(
    ("bits", "levels", "expected"),
    [
        (1, [1, 0, 1, 0], [0.9, -0.9, 0.9, -0.9]),
        (2, [3, 1, 2, 0], [0.9, -0.3, 0.3, -0.9]),
        (3, [7, 2, 4, 1], [0.9, -0.3857143, 0.1285714, -0.6428571]),
    ],
)
def test_laq_worked_numbers(bits, levels, expected):
    assert oracle.laq(V, bits)[0] == levels
    np.testing.assert_allclose(there_and_back(Uniform(bits), V), expected, rtol=1e-6)


@laws
@given(values=numbers, bits=st.integers(1, 8))
def test_laq_is_the_paper_s_and_within_half_a_step(values, bits):
    back, largest = there_and_back(Uniform(bits), values), max(abs(v) for v in values)
    assert np.abs(back - np.array(values)).max() <= largest / (2**bits - 1) * (1 + 1e-5) + 1e-37
    if largest > 1e-30:
        # A number half way between two levels may go either way; the error is the same.
        ours, theirs = (np.abs(np.array(found) - values) for found in (back, oracle.laq(values, bits)[1]))
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * largest)


def test_adapted_bits_are_the_worked_ones():
    one_hot = np.zeros(1000, np.float32)
    one_hot[3] = 2.0
    bell = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    unguarded = Adaptive("laq", guard=None)
    assert [unguarded.bits_for(v) for v in (np.full(100, 0.3, np.float32), one_hot, bell)] == [1, 5, 2]
    assert oracle.aquila_bits(one_hot.tolist()) == 5
    assert Adaptive("symmetric", guard=None).bits_for(np.full(100, 0.3, np.float32)) == 2


@laws
@given(values=numbers)
def test_adapted_bits_follow_the_formula(values):
    if max(abs(v) for v in values) > 1e-12:
        assert abs(Adaptive("laq", guard=None).bits_for(np.array(values, np.float32)) - oracle.aquila_bits(values)) <= (
            0 if len(values) > 1 and len(set(map(abs, values))) > 1 else 1
        )


@pytest.mark.parametrize("draw", ["standard_normal", "uniform"])
@pytest.mark.parametrize("grid", ["laq", "symmetric"])
def test_tracking_a_constant_stalls_and_the_guard_cures_it(draw, grid):
    generator = np.random.default_rng(1)
    target = generator.uniform(-1, 1, 50_000) if draw == "uniform" else generator.standard_normal(50_000)
    left = {}
    for guard in (None, 0.5):
        rest = target.astype(np.float32)
        for _ in range(12):
            rest = rest - there_and_back(Adaptive(grid, guard), rest)
        left[guard] = np.linalg.norm(rest) / np.linalg.norm(target)
    if grid == "laq":
        assert left[None] > 0.75
    assert left[0.5] <= 0.5**12 * 1.01


@pytest.mark.parametrize(
    ("bits", "codes", "zero", "expected"),
    [(8, [-128, -43, -1, 127], -43, [-1, 0, 0.494118, 2]), (4, [-8, -3, -1, 7], -3, [-1, 0, 0.4, 2])],
)
def test_affine_worked_row(bits, codes, zero, expected):
    row = [-1.0, 0.0, 0.5, 2.0]
    assert oracle.affine(row, bits)[:2] == (zero, codes)
    np.testing.assert_allclose(there_and_back(Affine(bits), row), expected, atol=1e-6)


@pytest.mark.parametrize("value", [0.7, -0.7, 0.0, 1e-30, 3e37])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_affine_channel_of_one_value_is_exact_whatever_its_neighbours(bits, value):
    back = there_and_back(Affine(bits), [value] * 4 + [0.0] * 3 + [-1.0, 5.0], 4, 3, 2)
    assert back[:7].tolist() == np.array([value] * 4 + [0.0] * 3, np.float32).tolist()


@laws
@given(rows=st.lists(numbers, min_size=1, max_size=4), bits=st.sampled_from((2, 4, 8)))
def test_affine_is_the_oracle_row_by_row(rows, bits):
    back = there_and_back(Affine(bits), [*chain.from_iterable(rows)], *(len(row) for row in rows))
    for row, part in zip(rows, np.split(back, np.cumsum([len(row) for row in rows])[:-1]), strict=True):
        span = max(0.0, *row) - min(0.0, *row)
        # A number half way between two codes may go either way, for the range is rounded up to float32.
        np.testing.assert_allclose(part, oracle.affine(row, bits)[2], atol=1.01 * span / (2**bits - 1) + 1e-37)
        assert np.abs(part - np.array(row)).max() <= 1.0001 * span / (2**bits - 1) + 1e-37


def test_affine_of_its_own_output_changes_nothing():
    once = there_and_back(Affine(8), np.random.default_rng(3).standard_normal(60), 20, 20, 20)
    np.testing.assert_allclose(there_and_back(Affine(8), once, 20, 20, 20), once, rtol=1e-6)


def test_affine_leaves_vectors_alone():
    values = np.array([1.1, 2.2, 3.3, 4.4], np.float32)
    kept = Runs(np.array([2, 2]), np.array([False, True]))
    back = Affine(2).read(Cursor(Affine(2).write(values, kept, TRIP)), kept)
    assert back[2:].tolist() == values[2:].tolist()


@laws
@given(rows=st.lists(numbers, min_size=1, max_size=4), bits=st.sampled_from((2, 4, 6, 8)))
def test_symmetric_error_is_at_most_half_a_step_of_its_own_run(rows, bits):
    back = there_and_back(Symmetric(bits), [*chain.from_iterable(rows)], *(len(row) for row in rows))
    largest = max(abs(v) for row in rows for v in row)
    for row, part in zip(rows, np.split(back, np.cumsum([len(row) for row in rows])[:-1]), strict=True):
        step = max(abs(v) for v in row) / (2 ** (bits - 1) - 1)
        assert np.abs(part - np.array(row)).max() <= 0.501 * step + 2.0**-37 * largest + 1e-37
        assert all(part[i] == 0 for i, v in enumerate(row) if v == 0)


@laws
@given(values=numbers)
def test_one_bit_is_the_sign_with_the_mean_magnitude(values):
    mean = np.abs(np.array(values)).mean()
    expected = [mean if v >= 0 else -mean for v in np.array(values, np.float32)]
    np.testing.assert_allclose(there_and_back(Symmetric(1), values), expected, rtol=2.0**-10, atol=1e-40)


def test_random_rounding_is_exact_on_average_and_reproducible():
    values = np.random.default_rng(2).uniform(-1, 1, 50)
    grid = Symmetric(4, is_stochastic=True)
    draws = np.stack([there_and_back(grid, values, trip=Trip(1, seed)) for seed in range(400)])
    assert np.abs(draws.mean(axis=0) - values).max() < 5 * (1 / 7) / 2 / np.sqrt(400)
    assert draws[0].tolist() == there_and_back(grid, values, trip=Trip(9, 0)).tolist()
    assert draws.std(axis=0).max() > 0.01


@pytest.mark.parametrize("magnitude", [1e-30, 1e-8, 1.0, 1e30])
def test_halves_keep_their_precision_at_any_magnitude(magnitude):
    values = np.random.default_rng(4).uniform(0.01, 1.0, 100).astype(np.float32) * np.float32(magnitude)
    np.testing.assert_allclose(there_and_back(Floats(16), values), values, rtol=2.0**-11)
    assert there_and_back(Floats(32), values).tolist() == values.tolist()
