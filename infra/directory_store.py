"""The embedded default: an object store in a plain local folder, safe against crashes and against other processes.

An object is written to a temporary file beside its place, synced to disk, and only then given its name: by a hard
link for create-if-absent (the kernel lets exactly one succeed), by a rename for overwriting. So a name never shows
half an object. Temporary names hold a character that no key may hold, so no key can address or list them.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.object_store import ObjectInfo, PresignedPut, StoreCapabilities, check_key, check_prefix
from tasks.errors import ObjectNotFoundError, StoreError

_TEMPORARY = "~"
_ABANDONED_S = 3600.0
_IN_THE_WAY = "a file stands where a folder is needed: remove it, or name another folder"
_REMEDIES = {
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.ENOSPC: "the disk is full: free some space and run again",
    errno.EDQUOT: "the quota is used up: free some space and run again",
    errno.EFBIG: "the object is larger than this process or file system allows",
    errno.EACCES: "give this user leave to read and write the folder, or name another folder",
    errno.EPERM: "the file system refuses hard links or this user: name a folder on a local disk",
    errno.EROFS: "the file system is read-only: name another folder",
    errno.ENOTSUP: "the file system has no hard links: name a folder on a local disk",
}


class DirectoryStore:
    """An `ObjectStore` in a local folder, which is made by the first write.

    Args:
        root: The folder. Key segments become its sub-folders; deleting leaves empty ones behind.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    @property
    def capabilities(self) -> StoreCapabilities:
        """Constant: the kernel decides races, and there is no wire on which bytes could change."""
        return StoreCapabilities(
            creates_if_absent=True, checks_md5=False, checks_sha256=False, takes_checksums=False, presigns=False
        )

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""
        target = self._path(key)
        with self._writing(key), _written(target.parent, data) as temporary:
            os.replace(temporary, target)
            _sync_folder(target.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless its key is taken; return whether this call made it."""
        target = self._path(key)
        with self._writing(key):
            if target.is_file():
                return False
            with _written(target.parent, data) as temporary:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
                _sync_folder(target.parent)
        return True

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        with self._reading(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `data[start : start + length]` of an object."""
        _check_range(key, start, length)
        with self._reading(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, key: str) -> int | None:
        """Return an object's length [bytes], or None."""
        path = self._path(key)
        with suppress(ObjectNotFoundError), self._reading(key):
            return path.stat().st_size if path.is_file() else None
        return None

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Return all objects whose key begins with `prefix`, sorted by key."""
        folder = self.root / check_prefix(prefix).rpartition("/")[0]
        found: list[ObjectInfo] = []
        with self._translated(prefix or "(any)"):
            for path in _files(folder):
                key = path.relative_to(self.root).as_posix()
                # An object may go between being seen and being measured; then it is not there.
                with suppress(FileNotFoundError):
                    if key.startswith(prefix):
                        found.append(ObjectInfo(key, path.stat().st_size))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """Remove an object, if there is one."""
        path = self._path(key)
        with self._translated(key), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)

    def presign_get(self, key: str, expires_s: int) -> str:
        """Refuse: a folder has no web address.

        Raises:
            StoreError: Always.
        """
        raise self._no_address(key)

    def presign_put(self, key: str, *, length: int, md5_base64: str, expires_s: int) -> PresignedPut:
        """Refuse: a folder has no web address.

        Raises:
            StoreError: Always.
        """
        raise self._no_address(key)

    def _no_address(self, key: str) -> StoreError:
        return StoreError(
            f"object {key} in {self.url}", "a folder has no presigned URLs", remedy="use a store at s3://"
        )

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        with self._translated(key):
            try:
                yield
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                subject = f"object {key} in {self.url}"
                raise ObjectNotFoundError(subject, "there is no such object") from None

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        with self._translated(key):
            if self._path(key).is_dir():
                raise StoreError(f"object {key} in {self.url}", "is the beginning of other keys, so it cannot be one")
            yield

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"object {key} in {self.url}",
                f"the file system refuses: {error.strerror}",
                remedy=_REMEDIES.get(error.errno or 0, ""),
            ) from error


def _check_range(key: str, start: int, length: int) -> None:
    if start < 0 or length < 1:
        raise StoreError(
            f"object {key}", "no such range", got=f"{length} bytes from {start}", expected="at least 1 from 0 on"
        )


@contextmanager
def _written(folder: Path, data: bytes) -> Iterator[Path]:
    """Hold `data`, synced to disk, in a temporary file of `folder` that is gone afterwards."""
    _make_folder(folder)
    _sweep(folder, before=time.time() - _ABANDONED_S)
    temporary = folder / (_TEMPORARY + secrets.token_hex(8))
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, and sync each new name to disk."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    # A name is durable only once the folder that holds it is synced.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path, *, before: float) -> None:
    """Remove what writers that were killed left in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            # Another writer may finish or sweep at the same moment.
            with suppress(FileNotFoundError):
                if entry.name.startswith(_TEMPORARY) and entry.stat().st_mtime < before:
                    os.unlink(entry.path)


def _files(folder: Path) -> Iterator[Path]:
    for path, _, names in os.walk(folder, onerror=_raise_unless_gone):
        for name in names:
            if not name.startswith(_TEMPORARY):
                yield Path(path, name)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
