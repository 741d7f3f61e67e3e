"""A client's private folder: where a repeated round starts from, what is downloaded once, and what stays bounded."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.private_state import PrivateState
from infra.settings import read_settings
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.peft_files import encode_adapter
from tasks.adapters.products import dense_product
from tasks.errors import AdapterFormatError, ConfigError, IntegrityError, StoreError, StoreUnavailableError
from tasks.rounds.records import sha256
from tests.strategies import adapters

DATA = b"a share"
DIGEST = sha256(DATA)


def marked(value: float) -> LoraAdapter:
    return LoraAdapter({"m": LoraPair(torch.tensor([[float(value)]]), torch.ones(2, 1))}, {"head": torch.ones(3)})


def mark(kept: tuple[int, LoraAdapter] | None) -> tuple[int, float] | None:
    return None if kept is None else (kept[0], kept[1].pairs["m"].a.item())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def state(tmp_path: Path) -> PrivateState:
    return PrivateState(tmp_path, "run-1", "c00")


@settings(max_examples=15, derandomize=True)
@given(adapters())
def test_adapter_comes_back_with_its_update_and_dtype(adapter):
    with tempfile.TemporaryDirectory() as folder:
        state = PrivateState(Path(folder), "run-1", "c00")
        state.save("personal", 0, adapter)
        kept = state.latest("personal", 1)
    assert kept is not None
    assert encode_adapter(kept[1]) == encode_adapter(adapter)
    for path, pair in adapter.pairs.items():
        assert (kept[1].pairs[path].a.dtype, kept[1].pairs[path].scaling) == (pair.a.dtype, 1.0)
        torch.testing.assert_close(dense_product(kept[1].pairs[path]), dense_product(pair))


@settings(max_examples=15, derandomize=True)
@given(st.sets(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 32))
def test_latest_is_the_last_of_three_kept_rounds_before(rounds, before):
    with tempfile.TemporaryDirectory() as folder:
        state = PrivateState(Path(folder), "run-1", "c00")
        for index in sorted(rounds):
            state.save("personal", index, marked(index))
        kept = [index for index in sorted(rounds)[-3:] if index < before]
        assert mark(state.latest("personal", before)) == ((kept[-1], kept[-1]) if kept else None)
        assert len(files(Path(folder))) == min(len(rounds), 3)


def test_repeated_attempts_of_a_round_start_from_the_same_adapter(state):
    state.save("personal", 2, marked(2))
    for attempt in (31, 32, 33):
        assert mark(state.latest("personal", 3)) == (2, 2)
        state.save("personal", 3, marked(attempt))
    assert mark(state.latest("personal", 4)) == (3, 33)


def test_what_another_attempt_has_just_removed_is_passed_over(state, monkeypatch):
    """Two attempts of one client may run at once, in two processes."""
    for round_index in (1, 2):
        state.save("held", round_index, marked(round_index))
    digest, listed = sha256(encode_adapter(marked(1))), PrivateState._rounds(state, "held")
    monkeypatch.setattr(PrivateState, "_rounds", lambda *_: [0, *listed, 3])
    assert encode_adapter(state.find("held", digest)) == encode_adapter(marked(1))
    assert state.find("held", "0" * 64) is None


def test_straggler_takes_nothing_from_later_rounds(state):
    for index in (4, 5, 6, 3):
        state.save("personal", index, marked(index))
    assert [mark(state.latest("personal", index + 1)) for index in (3, 4, 5, 6)] == [(3, 3), (4, 4), (5, 5), (6, 6)]
    state.save("personal", 7, marked(7))
    assert [mark(state.latest("personal", index)) for index in (5, 6)] == [None, (5, 5)]


def test_names_clients_and_runs_are_kept_apart(tmp_path):
    states = [PrivateState(tmp_path, run, client) for run in ("run-1", "run-2") for client in ("c00", "c01")]
    for number, state in enumerate(states):
        state.save("personal", 0, marked(number))
        state.save("start", 0, marked(number + 10))
    for number, state in enumerate(states):
        assert mark(state.latest("personal", 1)) == (0, number)
        assert mark(state.latest("start", 1)) == (0, number + 10)
        assert state.latest("shared", 1) is None


def test_all_lies_under_the_private_folder_of_home(home):
    state = PrivateState(read_settings().home, "run-1", "c00")
    state.save("personal", 12, marked(1))
    state.cached(DIGEST, lambda: DATA)
    root = "private/run-1/c00"
    downloads = {f"{root}/downloads/{DIGEST}", f"{root}/downloads/{DIGEST}.errand"}
    assert files(home) == {f"{root}/adapters/personal/000012.safetensors", *downloads}


def test_failed_write_is_named_and_leaves_the_older_adapter(state, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    state.save("personal", 1, marked(1))
    monkeypatch.setattr(os, "fsync", full)
    for index in (1, 2):
        with pytest.raises(StoreError, match=rf"adapters/personal/00000{index}.* in .*the disk is full"):
            state.save("personal", index, marked(9))
    assert mark(state.latest("personal", 5)) == (1, 1)
    assert len(files(state.root)) == 1


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "private").write_bytes(b"")
    state = PrivateState(tmp_path, "run-1", "c00")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        state.save("personal", 0, marked(1))
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        state.cached(DIGEST, lambda: DATA)
    assert state.latest("personal", 1) is None


def test_damaged_adapter_is_an_error_not_an_older_one(state):
    for index in (1, 2):
        state.save("personal", index, marked(index))
    damaged = state.root / "adapters/personal/000002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(AdapterFormatError, match=r"run-1/c00/adapters/personal/000002\.safetensors"):
        state.latest("personal", 3)


def test_files_of_others_in_the_folder_are_passed_over(state):
    state.save("personal", 1, marked(1))
    for stray in ("note.txt", "000009.safetensors.bak", "9.safetensors"):
        (state.root / "adapters/personal" / stray).write_bytes(b"x")
    assert mark(state.latest("personal", 10)) == (1, 1)


@pytest.mark.parametrize("bad", ["", "..", "a/b", "../c01", "Personal", "-x", "a" * 101])
def test_ids_and_names_that_could_leave_the_folder_are_refused(tmp_path, bad):
    state = PrivateState(tmp_path, "run-1", "c00")
    refused = [
        lambda: PrivateState(tmp_path, bad, "c00"),
        lambda: PrivateState(tmp_path, "run-1", bad),
        lambda: state.save(bad, 0, marked(1)),
        lambda: state.latest(bad, 1),
    ]
    for call in refused:
        with pytest.raises(ConfigError, match="is not a usable id"):
            call()
    assert files(tmp_path) == set()


def test_negative_round_is_refused(state):
    with pytest.raises(ConfigError, match="private adapter 'personal': no such round; got -1"):
        state.save("personal", -1, marked(1))


# --- downloads ---------------------------------------------------------------------------------------------------


def test_download_happens_once(state):
    calls: list[int] = []

    def fetch() -> bytes:
        calls.append(1)
        return DATA

    assert not state.holds(DIGEST)
    assert [state.cached(DIGEST, fetch) for _ in range(3)] == [(DATA, True), (DATA, False), (DATA, False)]
    assert len(calls) == 1
    assert state.holds(DIGEST)


@pytest.mark.parametrize("damage", [b"", b"a sharf", DATA + b"!"])
def test_damaged_copy_is_downloaded_again(state, damage):
    state.cached(DIGEST, lambda: DATA)
    (state.root / "downloads" / DIGEST).write_bytes(damage)
    assert not state.holds(DIGEST)
    assert state.cached(DIGEST, lambda: DATA) == (DATA, True)
    assert state.holds(DIGEST)


def test_altered_download_is_refused_and_not_kept(state):
    with pytest.raises(IntegrityError, match="download of client c00: bytes were altered"):
        state.cached(DIGEST, lambda: b"other bytes")
    assert files(state.root.parent.parent) == set()
    assert state.cached(DIGEST, lambda: DATA) == (DATA, True)


def test_failed_download_keeps_its_own_error(state):
    def fetch() -> bytes:
        raise StoreUnavailableError("store", "does not answer")

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        state.cached(DIGEST, fetch)
    assert not state.holds(DIGEST)


@pytest.mark.parametrize("bad", ["", "abc", "../" + "a" * 61, DIGEST.upper(), DIGEST + "0", DIGEST + "\n"])
def test_what_is_no_digest_is_refused(state, bad):
    for call in (lambda: state.holds(bad), lambda: state.cached(bad, lambda: DATA)):
        with pytest.raises(ConfigError, match="is no SHA-256"):
            call()


# --- forgetting --------------------------------------------------------------------------------------------------


def test_forgetting_takes_all_of_this_client_and_run_and_nothing_else(tmp_path):
    states = [PrivateState(tmp_path, run, client) for run in ("run-1", "run-2") for client in ("c00", "c01")]
    for state in states:
        state.save("personal", 0, marked(1))
        state.cached(DIGEST, lambda: DATA)
    # What a killed writer left is private as well.
    (states[0].root / "adapters/personal/~half").write_bytes(b"x")
    states[0].forget()
    states[0].forget()
    assert not states[0].root.exists()
    assert states[0].latest("personal", 1) is None
    assert not states[0].holds(DIGEST)
    assert all(state.holds(DIGEST) and state.latest("personal", 1) for state in states[1:])


def test_folder_that_cannot_be_removed_is_named(state, monkeypatch):
    def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    state.save("personal", 0, marked(1))
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StoreError, match=r"run-1/c00: cannot be removed: Permission denied"):
        state.forget()


def test_an_errand_that_is_run_again_still_counts_its_own_download(state):
    first = state.cached(DIGEST, lambda: DATA, errand="round 3, attempt 1")
    again = state.cached(DIGEST, lambda: DATA, errand="round 3, attempt 1")
    other = state.cached(DIGEST, lambda: DATA, errand="round 3, attempt 2")
    assert [first, again, other] == [(DATA, True), (DATA, True), (DATA, False)]
