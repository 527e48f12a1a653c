"""Files that are whole or absent."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.errors import StillroomError
from stillroom.files import (
    canonical,
    fresh_folder,
    locked,
    read_json,
    read_limited,
    remove_leftovers,
    replace_folder,
    sha256,
    sha256_file,
    user_path,
    write_atomic,
    write_json,
)

FORK = multiprocessing.get_context("fork")


def test_canonical_json_is_the_same_for_equal_values() -> None:
    assert canonical({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"\\u00e9"],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


def test_digests(tmp_path: Path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256("abc") == sha256(b"abc") == sha256_file(tmp_path / "x") == known


def test_written_whole_with_the_usual_rights(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "deep" / "file", "text")
        with fresh_folder(tmp_path / "folder") as fresh:
            write_json(fresh / "a.json", {"x": 1})
    finally:
        os.umask(old)
    assert (tmp_path / "deep" / "file").read_text() == "text"
    assert stat.S_IMODE((tmp_path / "deep" / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_failed_write_keeps_the_old_file(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    full = code in (errno.ENOSPC, errno.EDQUOT)
    with pytest.raises(StillroomError, match="the disk is full" if full else "cannot be written"):
        write_atomic(path, "new")
    with pytest.raises(StillroomError):
        write_atomic(tmp_path / "folder" / "file", "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not readable as JSON"),
        ("[1, NaN]", "NaN is not a number"),
        ("9" * 5000, "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
    ],
    ids=["cut", "nan", "digits", "deep", "bytes"],
)
def test_json_that_is_refused(text: str | bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StillroomError, match=problem):
        read_json(path)


def test_json_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(StillroomError, match="no such file"):
        read_json(tmp_path / "none")
    with pytest.raises(StillroomError, match="Is a directory"):
        read_json(tmp_path)
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.truncate(65 * 2**20)
    with pytest.raises(StillroomError, match="larger than 64 MiB"):
        read_json(huge)
    write_json(tmp_path / "ok", {"b": 2, "a": 1})
    assert list(json.loads((tmp_path / "ok").read_text())) == ["a", "b"]


@pytest.fixture
def bounded() -> Iterator[None]:
    """A reader without end takes 1 GiB or 20 seconds of this machine, not all of it."""
    usual = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, usual[1]))
    signal.alarm(20)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, usual)


@pytest.mark.usefixtures("bounded")
def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    """By their names a device is of 0 bytes, and a pipe waits for a writer."""
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("device", "pipe"):
        for read in (read_json, lambda path: read_limited(path, 10)):
            with pytest.raises(StillroomError, match=f"{name}: not a regular file") as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_what_is_longer_than_it_says_is_read_to_the_limit(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    assert status.stat().st_size == 0
    with pytest.raises(StillroomError, match="larger than 0 MiB, so not a file of stillroom's"):
        read_limited(status, 10)
    assert b"VmSize" in read_limited(status, 2**20)
    (tmp_path / "x").write_bytes(b"0123456789")
    assert read_limited(tmp_path / "x", 10) == b"0123456789"
    with pytest.raises(StillroomError, match="larger than"):
        read_limited(tmp_path / "x", 9)
    with pytest.raises(StillroomError, match="larger than"):
        read_json(tmp_path / "x", 9)
    with pytest.raises(StillroomError, match=r"no such file$"):
        read_limited(tmp_path / "none", 9)
    with pytest.raises(StillroomError, match=r"Is a directory$"):
        read_limited(tmp_path, 9)


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "set"
    final.mkdir()
    (final / "old").touch()

    def fail() -> None:
        with fresh_folder(final) as fresh:
            (fresh / "new").touch()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert [p.name for p in final.iterdir()] == ["old"]
    with fresh_folder(final) as fresh:
        (fresh / "new").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert [p.name for p in final.iterdir()] == ["new"]


def _die_half_way(final: Path) -> None:
    with fresh_folder(final) as fresh:
        (fresh / "half").touch()
        os._exit(9)


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """And nothing else: not what a living process makes, not a user's own hidden folder."""
    final = tmp_path / "set"
    child = FORK.Process(target=_die_half_way, args=(final,))
    child.start()
    child.join()
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".set-backup").mkdir()
    with fresh_folder(final) as slow:
        with fresh_folder(final) as quick:
            (quick / "first").touch()
        assert slow.is_dir()
        (slow / "second").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set-backup", "set"]
    assert [p.name for p in final.iterdir()] == ["second"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with fresh_folder(tmp_path / "link") as fresh:
        (fresh / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new").is_file()


def _publish(root: Path, name: str, turns: int) -> None:
    for _ in range(turns):
        with fresh_folder(root / "set") as fresh:
            (fresh / "a").write_text(name)
            (fresh / "b").write_text(name)


def test_publishing_at_once_harms_nobody(tmp_path: Path) -> None:
    children = [FORK.Process(target=_publish, args=(tmp_path, n, 40)) for n in ("x", "y", "z")]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    texts = {(tmp_path / "set" / n).read_text() for n in "ab"}
    assert len(texts) == 1


def test_replacing_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="directory"):
        replace_folder(tmp_path / "new", tmp_path / "file")
    assert (tmp_path / "file").is_file()


def _count(path: Path, lock: Path, turns: int) -> None:
    for _ in range(turns):
        with locked(lock, remove=True):
            path.write_text(str(int(path.read_text()) + 1))


def test_lock_that_is_removed_still_excludes(tmp_path: Path) -> None:
    """A lock file removed under a waiting process must not let two of them in."""
    path, lock = tmp_path / "count", tmp_path / "lock"
    path.write_text("0")
    children = [FORK.Process(target=_count, args=(path, lock, 300)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert path.read_text() == "1200"
    assert not lock.exists()


def test_lock_without_waiting(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as waited:
        assert waited is False
        with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
            pass
    with locked(tmp_path / "lock", wait=False):
        pass


def test_leftovers(tmp_path: Path) -> None:
    for name in (".a.json-x1y2z3w_.tmp", "mine.tmp", ".hidden", "a.json"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "a.json", "mine.tmp"]


def test_leftovers_of_one_file(tmp_path: Path) -> None:
    """In a folder of a user's, what other programs left there is not ours."""
    theirs = [".b.json-x1y2z3w_.tmp", ".thesis-20240101.tmp", ".[a].json-old-x1y2z3w_.tmp"]
    for name in (".[a].json-x1y2z3w_.tmp", *theirs):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "[a].json")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(theirs)


def test_paths_as_people_write_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x", "out") == tmp_path / "x"
    for bad in ("~nosuchuser/x", "x" * 300, "a\0b"):
        with pytest.raises(StillroomError, match=r"^out='.*is no usable path"):
            user_path(bad, "out")
