"""Files that are whole or absent: canonical JSON, digests, atomic writes and locks.

Everything that stillroom leaves on disk goes through this module, so that a process killed at any
moment leaves no half-written file under a final name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.errors import StillroomError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; single-process use still works
    fcntl = None  # type: ignore[assignment]

MAX_JSON_BYTES = 64 * 2**20  # a foreign meta.json cannot exhaust memory


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
    with readable_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}-", suffix=".tmp"
        )
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(blob)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write canonical-order, indented JSON atomically."""
    write_atomic(path, json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of at most 64 MiB.

    Raises: StillroomError naming the file if it is absent, too large or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StillroomError(f"{path}: larger than 64 MiB, so not a file of stillroom's")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StillroomError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StillroomError(
            f"{path}: not readable as JSON ({error}); is the file cut off?"
        ) from None
    except OSError as error:
        raise StillroomError(f"{path}: {error.strerror or error}") from None


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
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise StillroomError(f"{path}: cannot be written ({error.strerror})") from error
        raise


@contextlib.contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `final`; on success it replaces `final`, else it is removed."""
    with readable_os_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-"))
        os.chmod(temporary, 0o777 & ~_umask())
    try:
        with readable_os_errors(final):
            yield temporary
            replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; an older `final` is moved aside first and then removed."""
    if final.exists():
        aside = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-old-"))
        os.rename(final, aside / "old")
        os.rename(new, final)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(new, final)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on `path`, which the kernel frees if this process dies.

    Yields True if another process held it first, that is, if this one had to wait.
    """
    with readable_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    waited = False
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield waited
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
