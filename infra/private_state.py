"""What a client keeps at home between rounds and never sends: its own adapters, and downloads it need not repeat.

Everything lies in a folder of this machine, `<home>/private/<run>/<client>/`, written as the local object store writes:
synced, under its name only when whole. Nothing here knows the exchange store, so nothing kept here can reach it.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.directory_store import DirectoryStore
from tasks.adapters.lora import LoraAdapter
from tasks.adapters.peft_files import decode_adapter, encode_adapter
from tasks.errors import ConfigError, ObjectNotFoundError, StoreError
from tasks.rounds.keys import check_id
from tasks.rounds.records import check_digest, sha256

KEPT_ROUNDS = 3
"""Rounds of one name that stay: a repeated round needs the one before it, a straggler perhaps the one before that."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROUND_FILE = re.compile(r"(?P<round>[0-9]{6,})\.safetensors")


@dataclass(frozen=True)
class PrivateState:
    """One client's private folder in one run; made by the first write.

    Args:
        home: Where this machine keeps its state (`Settings.home`).
        run_id: The run.
        client_id: The client.

    Raises:
        ConfigError: An id cannot be the name of a folder.
    """

    home: Path
    run_id: str
    client_id: str

    def __post_init__(self) -> None:
        check_id("run", self.run_id)
        check_id("client", self.client_id)

    @property
    def root(self) -> Path:
        """The folder."""
        return self.home.resolve() / "private" / self.run_id / self.client_id

    @property
    def _store(self) -> DirectoryStore:
        return DirectoryStore(self.root)

    def save(self, name: str, round_index: int, adapter: LoraAdapter) -> None:
        """Keep an adapter as it stood after a round, replacing what an earlier attempt of that round kept.

        Of the rounds before it the last two stay as well; later ones, which a straggler may find, are left alone.

        Args:
            name: Which of the client's adapters, e.g. "personal".
            round_index: After which round [0, ...).
            adapter: Any adapter; its scaling is folded.

        Raises:
            ConfigError: The name cannot be that of a folder, or the round is negative.
            StoreError: The folder cannot be written; the message says why.
        """
        if round_index < 0:
            raise ConfigError(f"private adapter {name!r}", "no such round", got=round_index, expected="0 or more")
        self._store.put(_key(name, round_index), encode_adapter(adapter))
        older = [found for found in self._rounds(name) if found < round_index]
        for outdated in older[: -(KEPT_ROUNDS - 1)]:
            self._store.delete(_key(name, outdated))

    def latest(self, name: str, before_round: int) -> tuple[int, LoraAdapter] | None:
        """Return the adapter of the last round before another, so that a repeated round starts where it first did.

        Args:
            name: Which of the client's adapters.
            before_round: The round that is about to run.

        Returns:
            Its round and the adapter, scaling 1; None when no earlier round kept one.

        Raises:
            ConfigError: The name cannot be that of a folder.
            AdapterFormatError: The file is damaged; an older one is not taken in its place.
            StoreError: The folder cannot be read.
        """
        earlier = [found for found in self._rounds(name) if found < before_round]
        if not earlier:
            return None
        key = _key(name, earlier[-1])
        return earlier[-1], decode_adapter(self._store.get(key), subject=str(self.root / key))

    def find(self, name: str, digest: str) -> LoraAdapter | None:
        """Return the adapter of a name that has a digest, whichever of the kept rounds it is from.

        Args:
            name: Which of the client's adapters.
            digest: SHA-256 of the adapter as `encode_adapter` writes it.

        Returns:
            The adapter, scaling 1; None when none of those kept is it.

        Raises:
            ConfigError: The name cannot be that of a folder.
            StoreError: The folder cannot be read.
        """
        for round_index in reversed(self._rounds(name)):
            try:
                data = self._store.get(_key(name, round_index))
            except ObjectNotFoundError:  # another attempt of this client has just made room
                continue
            if sha256(data) == digest:
                return decode_adapter(data)
        return None

    def cached(self, digest: str, fetch: Callable[[], bytes], *, errand: str = "") -> tuple[bytes, bool]:
        """Return bytes by their digest, downloading them only if they are not here yet.

        The bytes stay until `forget`: nothing here is removed for space.

        Args:
            digest: SHA-256 of the bytes.
            fetch: Downloads them.
            errand: What they are downloaded for, e.g. "round 3, attempt 1". An errand that is run again still counts
                what it downloaded the first time as its own; empty counts this call alone.

        Returns:
            The bytes, and whether they were downloaded now or on the same errand; a damaged copy is downloaded again.

        Raises:
            ConfigError: Not a digest.
            IntegrityError: What was downloaded does not have the digest; it is not kept.
            StoreError: The folder cannot be written.
        """
        held = self._held(digest)
        if held is not None:
            return held, bool(errand) and self._errand(digest) == errand
        data = check_digest(fetch(), digest, f"download of client {self.client_id}")
        self._store.put(_errand(digest), errand.encode())
        self._store.put(_download(digest), data)
        return data, True

    def holds(self, digest: str) -> bool:
        """Tell whether `cached` would answer without downloading; reads the whole copy.

        Raises:
            ConfigError: Not a digest.
            StoreError: The folder cannot be read.
        """
        return self._held(digest) is not None

    def forget(self) -> None:
        """Remove all that this client kept in this run; nothing to remove is no error.

        Raises:
            StoreError: The folder cannot be removed.
        """
        if not self.root.exists():
            return
        try:
            shutil.rmtree(self.root)
        except OSError as error:
            raise StoreError(
                f"folder {self.root}",
                f"cannot be removed: {error.strerror or error}",
                remedy="give this user leave to write it, or remove it by hand",
            ) from error

    def _held(self, digest: str) -> bytes | None:
        try:
            data = self._store.get(_download(digest))
        except ObjectNotFoundError:
            return None
        return data if sha256(data) == digest else None

    def _errand(self, digest: str) -> str:
        try:
            return self._store.get(_errand(digest)).decode("utf8", "replace")
        except ObjectNotFoundError:
            return ""

    def _rounds(self, name: str) -> list[int]:
        """List the rounds kept under a name, earliest first."""
        names = (info.key.rpartition("/")[2] for info in self._store.list(_folder(name)))
        return sorted(int(match["round"]) for match in map(_ROUND_FILE.fullmatch, names) if match)


def _folder(name: str) -> str:
    return f"adapters/{check_id('private adapter', name)}/"


def _key(name: str, round_index: int) -> str:
    return f"{_folder(name)}{round_index:06d}.safetensors"


def _download(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise ConfigError(f"digest {digest!r}", "is no SHA-256", expected="64 lower-case hexadecimal digits")
    return f"downloads/{digest}"


def _errand(digest: str) -> str:
    return f"{_download(digest)}.errand"
