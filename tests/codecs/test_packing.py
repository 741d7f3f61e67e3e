"""Whole numbers and places come back as they went, in few bytes, and never more of them than asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.codecs.cursor import Cursor
from tasks.codecs.packing import from_entropy, pack, read_codes, to_entropy, unpack, write_codes
from tasks.codecs.positions import read_positions, write_positions
from tasks.codecs.sums import norm, run_sums
from tasks.errors import AdapterFormatError
from tests.oracles.codecs import entropy

laws = settings(max_examples=80, derandomize=True, deadline=None)


@laws
@given(width=st.integers(1, 40), data=st.data())
def test_packed_numbers_come_back_in_as_few_bytes_as_there_are(width, data):
    codes = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=30)), np.int64)
    packed = pack(codes, width)
    assert len(packed) == -(-len(codes) * width // 8)
    assert unpack(Cursor(packed), len(codes), width).tolist() == codes.tolist()


@laws
@given(levels=st.sampled_from((2, 3, 15, 255, 256, 257, 65535)), data=st.data())
def test_codes_come_back(levels, data):
    codes = np.array(data.draw(st.lists(st.integers(0, levels - 1), max_size=60)), np.int64)
    cursor = Cursor(write_codes(codes, levels))
    assert read_codes(cursor, len(codes), levels).tolist() == codes.tolist()
    cursor.end()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.0])
def test_entropy_coding_comes_close_to_the_entropy(share):
    codes = (np.random.default_rng(0).random(200_000) < share).astype(np.int64)
    density = float(codes.mean())
    bound = 200_000 * entropy(density) / 8 if density else 0.0
    assert bound <= len(to_entropy(codes)) <= 1.01 * bound + 40
    assert from_entropy(Cursor(to_entropy(codes)), codes.size).tolist() == codes.tolist()


def test_rare_symbols_survive_a_lopsided_table():
    codes = np.concatenate([np.full(10**6, 7), np.arange(256)]).astype(np.int64)
    assert np.array_equal(from_entropy(Cursor(to_entropy(codes)), codes.size), codes)


@laws
@given(units=st.integers(1, 300), data=st.data())
def test_places_come_back(units, data):
    places = sorted(data.draw(st.sets(st.integers(0, units - 1))))
    cursor = Cursor(write_positions(np.array(places, np.int64), units))
    assert read_positions(cursor, units).tolist() == places
    cursor.end()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x03",
        b"\x00" * 12,  # a bitmap that ends too early
        b"\x01" + (101).to_bytes(5, "little") + b"\x01" + b"\0" * 20,  # more places than units
        b"\x01" + (2).to_bytes(5, "little") + b"\x08" + b"\x60\x60",  # a place beyond the last unit
        b"\x01" + (1).to_bytes(5, "little") + b"\xff" + b"\0" * 64,  # places of impossible width
        b"\x02\x00\x01" + b"\x00\x00\x00\x00" + b"\0" * 8,  # counts that sum to nothing
        b"\x02\x00\x00\x00\x80" + b"\x01\0\0\0" + b"\0\0\0\0",  # words that end in a zero
        b"\x02\x00\x00\x00\x80" + b"\xff\xff\xff\xff",  # more words than the message has
    ],
)
def test_garbled_places_are_refused(message):
    with pytest.raises(AdapterFormatError):
        read_positions(Cursor(message), 100)


def test_codes_outside_the_alphabet_are_refused():
    with pytest.raises(AdapterFormatError, match="code 3"):
        read_codes(Cursor(b"\x00" + pack(np.array([1, 3]), 2)), 2, 3)
    with pytest.raises(AdapterFormatError, match="way 9"):
        read_codes(Cursor(b"\x09"), 2, 3)


@laws
@given(values=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=50), seed=st.integers(0, 99))
def test_sums_do_not_depend_on_order(values, seed):
    array, start = np.array(values), np.zeros(1, np.int64)
    shuffled = np.random.default_rng(seed).permutation(array)
    assert run_sums(array, start).tolist() == run_sums(shuffled, start).tolist()
    assert run_sums(array, start)[0] == pytest.approx(float(np.sum(array)), abs=1e-12 * np.abs(array).max())


def test_norm_is_the_norm():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert norm(values) == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-12)
    assert norm(values[:0]) == norm(values * 0) == 0.0
