"""Files that are whole or absent: canonical JSON, digests, atomic writes and locks.

Everything that stillroom leaves on disk goes through this module, so that a process killed at any
moment leaves no half-written file under a final name.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from stillroom.errors import StillroomError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; single-process use still works
    fcntl = None  # type: ignore[assignment]

MAX_JSON_BYTES = 64 * 2**20  # a foreign meta.json cannot exhaust memory
MAX_JSON_DEPTH = 50
MAX_CONFUSED = 200  # classes; a confusion of more is too large to look at, and to keep
TEMPORARY = ".tmp"  # what ends so, was made by `mkstemp` or `mkdtemp` below, and is nobody's result


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(data: bytes | str) -> str:
    """Hex SHA-256 of bytes, or of text in UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file under a temporary name, flush it to disk, then rename it into place.

    Raises: StillroomError if the disk is full or the folder cannot be written.
    """
    blob = data.encode() if isinstance(data, str) else data
    with fresh_file(path) as stream:
        stream.write(blob)


@contextlib.contextmanager
def fresh_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary sibling of `path` to write to; on success it becomes `path`, else it goes.

    It is flushed to disk before it is renamed.
    Raises: StillroomError if the disk is full or the folder cannot be written; an OSError out of
    the block is taken for one of these.
    """
    with readable_os_errors(path):
        fresh = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}-", suffix=TEMPORARY
        )
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
                if fresh:
                    path.parent.rmdir()  # only while nobody else has put something there
            raise


def write_json(path: Path, value: Any) -> None:
    """Write canonical-order, indented JSON atomically."""
    write_atomic(path, json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")


def read_limited(path: Path, limit: int, why: str = "so not a file of stillroom's") -> bytes:
    """The content of a foreign file of at most `limit` bytes; `why` ends the refusal of a larger.

    Both its kind and its size are those of the opened file: a device or a file of /proc is of 0
    bytes by its name and gives bytes without end, and a pipe waits for a writer for ever.
    Raises: StillroomError naming the file if it is absent, not a regular file or too large.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StillroomError(
                    f"{path}: not a regular file (a device or a pipe?); put a plain file there"
                )
            # What has nothing to give yet, which only a file of /proc can do, gives None.
            data = b"" if status.st_size > limit else stream.read(limit + 1) or b""
    except FileNotFoundError:
        raise StillroomError(f"{path}: no such file") from None
    except OSError as error:
        raise StillroomError(f"{path}: {error.strerror or error}") from None
    if max(status.st_size, len(data)) > limit:
        raise StillroomError(f"{path}: larger than {limit // 2**20} MiB, {why}")
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most `limit` bytes, 64 MiB unless told.

    Raises: StillroomError naming the file if it is absent, too large or not JSON.
    """
    try:
        text = read_limited(path, limit).decode()
        value = json.loads(text, parse_constant=no_constant, parse_float=finite)
        refuse_deep(value)
        return value
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, 5000 digits, too deep
        why = str(error)[:120]
        raise StillroomError(
            f"{path}: not readable as JSON ({why}); is the file cut off?"
        ) from None


def refuse_deep(value: Any) -> None:
    """Refuse JSON of more levels than anything of ours has; to walk it might take all the stack.

    Raises: ValueError.
    """
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"more than {MAX_JSON_DEPTH} levels deep")


def no_constant(name: str) -> Any:
    """Refuse `NaN` and `Infinity`, which are no JSON."""
    raise ValueError(f"{name} is not a number")


def finite(text: str) -> float:
    """A JSON number that a float can hold; `1e999` would silently become infinite."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is too large")
    return number


def user_path(path: str | Path, what: str) -> Path:
    """A path as a person wrote it, with `~` for a home folder.

    Raises: StillroomError if no file could have that name.
    """
    try:
        expanded = Path(path).expanduser()
        expanded.stat()
    except (FileNotFoundError, NotADirectoryError):
        return expanded
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null byte
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StillroomError(f"{what}={str(path)[:80]!r} is no usable path ({why})") from None
    return expanded


@contextlib.contextmanager
def readable_os_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full, read-only or missing disk into one line with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StillroomError(
                f"{path}: the disk is full; free space or choose another folder, then run the "
                "same command again, it resumes"
            ) from error
        raise StillroomError(f"{path}: cannot be written ({error.strerror or error})") from error


def refuse_unwritable(path: Path, flag: str, *, folder: bool) -> None:
    """Raise StillroomError unless a file, or a folder, can be written at `path`; writes nothing.

    So that a run of hours does not find it out at its end. A file is replaced by another of its
    name, so it is the folder around it that must let that happen.
    """
    there = path.resolve()
    if there.exists() and there.is_dir() != folder:
        raise StillroomError(f"{flag} {path} is a {'file' if folder else 'folder'}; name another")
    there = there if folder else there.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise StillroomError(f"{flag} {path}: {there} is no folder; name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StillroomError(f"{flag} {path}: {there} may not be written to; name another")


@contextlib.contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `final`; on success it replaces `final`, else it is removed.

    What killed processes left of their own attempts at `final` is removed as well.
    """
    with readable_os_errors(final):
        final = final.resolve()  # "." has no name of its own
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _temporary_folder(final)
    try:
        with readable_os_errors(final):
            yield temporary
            replace_folder(temporary, final)
            _sweep(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; an older `final` is moved aside first and then removed.

    Processes that publish the same folder at once do not harm each other: the last one stays.
    """
    aside: list[Path] = []
    try:
        while True:
            try:
                os.rename(new, final)  # in one step where `final` is absent or an empty folder
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            aside.append(_mkdtemp(final))
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                os.rename(final, aside[-1] / "old")
    finally:
        for old in aside:
            shutil.rmtree(old, ignore_errors=True)


def _mkdtemp(final: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-", suffix=TEMPORARY))


def _temporary_folder(final: Path) -> tuple[Path, int | None]:
    """A new folder beside `final` and the lock that shows that its maker is alive."""
    while True:
        path = _mkdtemp(final)
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked: another one
            os.chmod(path, 0o777 & ~_umask())
            if fcntl is None:
                return path, None
            handle = os.open(path, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks is never swept
                fcntl.flock(handle, fcntl.LOCK_EX)
            if path.is_dir():
                return path, handle
            os.close(handle)


def _sweep(final: Path) -> None:
    """Remove temporary siblings of `final` whose makers are dead: nobody holds their lock."""
    if fcntl is None:
        return
    for path in final.parent.glob(f".{glob.escape(final.name)}-????????{TEMPORARY}"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of killed writers; call it while nobody else writes there.

    In a folder that is not stillroom's alone, `name` is the file whose writers are meant: what
    others of any name left there is not ours to remove.
    """
    of = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{of}-????????{TEMPORARY}"):
        if path.is_file():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, remove: bool = False) -> Iterator[bool]:
    """Hold an exclusive lock on `path`, which the kernel frees if this process dies.

    Yields True if another process held it first, that is, if this one had to wait. `remove`
    deletes the file before the lock is freed.
    Raises: BlockingIOError if another process holds it and `wait` is False.
    """
    handle, waited = _lock(path, wait)
    try:
        yield waited
    finally:
        if remove:
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(handle)


def _lock(path: Path, wait: bool) -> tuple[int, bool]:
    waited = False
    while True:
        with readable_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        if fcntl is None:
            return handle, waited
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                os.close(handle)
                raise
            waited = True
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Whoever held it may have removed the file: a lock on that one keeps nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle, waited
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
