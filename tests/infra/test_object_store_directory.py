"""What only a local folder can go through: racing processes, killed writers, a full disk, a folder one may not use."""

import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.directory_store import DirectoryStore
from tasks.errors import ObjectNotFoundError, StoreError

_ROOT = Path(__file__).parents[2]

_RACER = """
import sys
from pathlib import Path
from infra.directory_store import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    if store.create(f"race/{number:02d}", sys.argv[2].encode() * 1000):
        print(number, flush=True)
"""

_WRITER = """
import sys
from pathlib import Path
from infra.directory_store import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
for number in range(100000):
    store.create(f"many/{number:06d}", number.to_bytes(8) * 65536)
    store.put("one", number.to_bytes(8) * 65536)
    print(number, flush=True)
"""


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _is_whole(data: bytes) -> bool:
    return len(data) == 8 * 65536 and data == data[:8] * 65536


def test_create_has_one_winner_among_sixteen_processes(tmp_path: Path) -> None:
    racers = [_python(_RACER, str(tmp_path), f"{number:02d}") for number in range(16)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 16
    assert sorted(int(key) for keys in won for key in keys) == list(range(25))
    for number, keys in enumerate(won):
        for key in keys:
            assert (tmp_path / f"race/{int(key):02d}").read_bytes() == f"{number:02d}".encode() * 1000


def test_killed_writer_leaves_whole_objects_and_all_it_acknowledged(tmp_path: Path) -> None:
    writer = _python(_WRITER, str(tmp_path))
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(10)]
    writer.kill()
    acknowledged += [int(line) for line in writer.communicate(timeout=20)[0].split()]
    store = DirectoryStore(tmp_path)
    listed = store.list("")
    assert {f"many/{number:06d}" for number in acknowledged} <= {info.key for info in listed}
    assert all(_is_whole(store.get(info.key)) for info in listed)


def test_next_writer_sweeps_what_a_killed_one_left_long_ago(tmp_path: Path) -> None:
    old, recent = tmp_path / "a" / "~old", tmp_path / "a" / "~recent"
    old.parent.mkdir()
    for left in (old, recent):
        left.write_bytes(b"half")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    store = DirectoryStore(tmp_path)
    assert store.list("") == []
    store.put("a/b", b"x")
    assert not old.exists()
    assert recent.exists()


def test_finished_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b", b"1")
    store.create("a/b", b"2")
    store.create("a/c", b"3")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b", "c"]


def test_objects_are_readable_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        DirectoryStore(tmp_path).create("a/b", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o640


def test_write_that_the_system_cuts_short_changes_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for write in (store.put, store.create):
            key = "a/b" if write == store.put else "a/new"
            with pytest.raises(StoreError, match=f"object {key} .* file system refuses: .*larger than"):
                write(key, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert store.get("a/b") == b"old"


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        DirectoryStore(tmp_path / "file").put("a/b", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_leave_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreError, match=r"Permission denied; give this user leave"):
        DirectoryStore(tmp_path / "closed").put("a/b", b"x")


def test_key_below_an_object_is_absent_and_cannot_be_written(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a", b"x")
    assert store.size("a/b") is None
    with pytest.raises(ObjectNotFoundError):
        store.get("a/b")
    store.delete("a/b")
    with pytest.raises(StoreError, match="file system refuses"):
        store.put("a/b", b"y")
    assert store.get("a") == b"x"


def test_key_above_objects_is_absent_and_cannot_be_written(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b", b"x")
    assert store.size("a") is None
    with pytest.raises(ObjectNotFoundError):
        store.get("a")
    for write in (store.put, store.create):
        with pytest.raises(StoreError, match="beginning of other keys"):
            write("a", b"y")
    assert store.get("a/b") == b"x"


def test_presigned_urls_are_refused_with_the_remedy(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(StoreError, match="use a store at s3://"):
        store.presign_get("a/b", 60)
    with pytest.raises(StoreError, match="use a store at s3://"):
        store.presign_put("a/b", length=1, md5_base64="x" * 24, expires_s=60)
