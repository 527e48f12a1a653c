"""`Tree`: layer statistics as EDC releases them, a folder or zip of small npz files.

A foreign archive: nothing is unpacked, unpickled or believed. What is read is a vector at a time,
of a bounded size whatever its header says. Layout and keys: shaoshitong/EDC, spec of the decoupled
methods, section 2.3.
"""

from __future__ import annotations

import ast
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import StillroomError
from stillroom.files import canonical, read_limited, sha256, sha256_file
from stillroom.nets.hooks import Kind

Vector = NDArray[np.float32]

MOST_FILES = 2**20  # ImageNet-1K with five networks: 391,000
MOST_VALUES = 2**16  # of one vector: channels or cells of a layer
FILE_BYTES = 4 * (8 * MOST_VALUES + 2**12)  # four vectors of float64 and what is around them
LIST_BYTES = 2**28  # of the list of an archive's members; of ImageNet-1K about 120 MB
DEEP = 12  # folders above each other
KEYS = {  # in a file -> here
    "running_dd_mean": "mean",
    "running_dd_var": "var",
    "running_patch_mean": "patch_mean",
    "running_patch_var": "patch_var",
}
HELD = {"conv": set(KEYS), "norm": {"running_dd_mean", "running_dd_var"}}
_HOOKS: dict[str, Kind] = {"ConvFeatureHook": "conv", "BNFeatureHook": "norm"}
_PLACE = re.compile(
    r"(?P<top>(?:[^/]+/)*)(?P<hook>ConvFeatureHook|BNFeatureHook)/"
    r"(?:class_(?P<of>0|[1-9][0-9]{0,5})/)?(?P<net>[\w-]+)=(?P<layer>[\w.]+)/running\.npz"
)
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError),
    *(SyntaxError, TypeError, OverflowError, RecursionError, MemoryError),  # of odd headers
)
_ODD = (NotImplementedError, RuntimeError, OSError)  # of zipfile: versions, passwords, offsets


@dataclass(frozen=True)
class Place:
    """Which statistics a file holds: of a layer of a network, of one class (`of`) or of all data.

    `net` is the name of the network's class in the code that wrote it, with which two networks may
    share their files.
    """

    kind: Kind
    net: str
    layer: str
    of: int | None = None


class Tree:
    """Statistics by place, read one file at a time; use it in a `with`."""

    def __init__(self, source: Path, files: dict[Place, str], archive: zipfile.ZipFile | None):
        self.source, self.files, self._archive = source, files, archive

    @classmethod
    def open(cls, source: Path) -> Tree:
        """Look what is in a folder or zip.

        Raises: StillroomError if it is neither, holds no statistics or two trees of them, or
        anything that no honest archive holds: absolute names, `..`, links, zips, two files of one
        name, or more files than a tree could need.
        """
        if source.is_dir():
            return cls(source, _places(source, _walked(source)), None)
        archive = _opened(source)
        try:
            return cls(source, _places(source, _listed(source, archive)), archive)
        except BaseException:
            archive.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._archive is not None:
            self._archive.close()

    def digest(self) -> str:
        """Sixteen hex digits: of a zip those of the file, of a folder of every file's name and
        content.
        """
        if self._archive is not None:
            return sha256_file(self.source)[:16]
        names = sorted(self.files.values())
        whole = [[n, sha256(read_limited(self.source / n, FILE_BYTES))] for n in names]
        return sha256(canonical(whole))[:16]

    def vectors(self, place: Place) -> dict[str, Vector]:
        """The vectors of a file by our names, float32: mean, var, and of convolutions of patches.

        Raises: StillroomError naming the file if they are damaged or not such vectors.
        """
        name = self.files[place]
        where = f"{self.source}: {name}"
        try:
            found = _vectors(where, self._bytes(where, name))
        except (*_DAMAGE, *_ODD) as error:
            if isinstance(error, StillroomError):
                raise
            raise StillroomError(
                f"{where}: damaged or no npz of plain numbers ({_line(error)}); get it again"
            ) from None
        if set(found) != {KEYS[key] for key in HELD[place.kind]}:
            raise StillroomError(
                f"{where}: holds {', '.join(sorted(found))[:80]}; of a {place.kind} it should "
                f"hold {', '.join(sorted(HELD[place.kind]))}"
            )
        return found

    def _bytes(self, where: str, name: str) -> bytes:
        if self._archive is None:
            return read_limited(self.source / name, FILE_BYTES, "which no layer's statistics are")
        return _content(where, self._archive, self._archive.getinfo(name), FILE_BYTES)


def _vectors(where: str, data: bytes) -> dict[str, Vector]:
    """What an npz holds, which is a zip of npy files itself."""
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        members = inner.infolist()
        if odd := [m for m in members if m.filename.removesuffix(".npy") not in KEYS]:
            raise StillroomError(f"{where}: holds {odd[0].filename[:60]!r}, which is no statistic")
        if len({m.filename for m in members}) < len(members):
            raise StillroomError(f"{where}: holds two vectors of one name; get it again")
        found: dict[str, Vector] = {}
        for member in members:
            key = member.filename.removesuffix(".npy")
            content = _content(where, inner, member, 8 * MOST_VALUES + 2**12)
            found[KEYS[key]] = _vector(f"{where}: {key}", content)
        return found


def _vector(where: str, data: bytes) -> Vector:
    """An npy file as float32 [n], its header checked before anything is made of it."""
    if data[:6] != b"\x93NUMPY" or data[6] not in (1, 2):
        raise StillroomError(f"{where}: not an npy file of version 1 or 2; get it again")
    wide = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + wide], "little")
    if length > 2**12:
        raise StillroomError(f"{where}: its header has {length} bytes; get it again")
    begin = 8 + wide + length
    header = ast.literal_eval(data[8 + wide : begin].decode("latin-1").strip())
    if not isinstance(header, dict) or not isinstance(header.get("descr"), str):
        raise StillroomError(f"{where}: not a plain array; only numbers are read")
    dtype, shape = np.dtype(header["descr"]), header.get("shape")
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise StillroomError(f"{where}: is of {dtype}; only real numbers are read")
    if shape == ():
        raise StillroomError(
            f"{where}: one number and no vector: no image came to this layer when it was collected"
        )
    count = shape[0] if isinstance(shape, tuple) and len(shape) == 1 else 0
    if not isinstance(count, int) or not 1 <= count <= MOST_VALUES:
        raise StillroomError(
            f"{where}: has shape {str(shape)[:60]}; it should be a vector of at most {MOST_VALUES}"
        )
    if len(data) - begin != count * dtype.itemsize:
        raise StillroomError(
            f"{where}: has {len(data) - begin} bytes of values for shape {shape}; get it again"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.frombuffer(data, dtype, count, begin).astype(np.float32)
    if not np.isfinite(values).all():
        raise StillroomError(f"{where}: holds NaN or infinite values; get it again")
    return values


def _content(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """A member's content, at most `limit` bytes whatever it declares."""
    if info.flag_bits & 1:
        raise StillroomError(f"{where}: is encrypted; unpack it with its password first")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise StillroomError(f"{where}: is packed by method {info.compress_type}; unpack it first")
    if info.file_size > limit:
        raise StillroomError(
            f"{where}: declares {info.file_size} bytes, which no layer's statistics are; not read"
        )
    try:
        with archive.open(info) as stream:
            data = stream.read(limit + 1)
    except _ODD as error:
        raise StillroomError(f"{where}: cannot be read ({_line(error)}); get it again") from None
    if len(data) != info.file_size:
        raise StillroomError(f"{where}: is cut off or longer than it declares; get it again")
    return data


def _walked(source: Path) -> Iterator[str]:
    """Names of all files below a folder; links are refused, not followed."""
    count, left = 0, [("", 0)]
    while left:
        below, depth = left.pop()
        with os.scandir(source / below) as entries:
            for entry in entries:
                name, count = f"{below}{entry.name}", count + 1
                if entry.is_symlink():
                    raise StillroomError(f"{source}: {name} is a link; put the files there")
                if depth > DEEP or count > 2 * MOST_FILES:
                    raise StillroomError(f"{source}: {name}: more than a tree of statistics holds")
                if entry.is_dir():
                    left.append((f"{name}/", depth + 1))
                elif entry.is_file():
                    yield name


def _opened(source: Path) -> zipfile.ZipFile:
    """The archive, if the list of its members has a size that can be held."""
    try:
        with source.open("rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise StillroomError(f"{source}: neither a folder nor a zip")
            _refuse_long_list(source, stream)
        return zipfile.ZipFile(source)
    except FileNotFoundError:
        raise StillroomError(f"{source}: no such folder or zip") from None
    except (*_DAMAGE, *_ODD) as error:
        if isinstance(error, StillroomError):
            raise
        raise StillroomError(f"{source}: not a whole zip ({_line(error)}); get it again") from None


def _refuse_long_list(source: Path, stream: BinaryIO) -> None:
    """Look at the end of a zip, where the size of its list stands, before that is read at once."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 2**16 - 2**10))
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        raise StillroomError(f"{source}: neither a folder of statistics nor a whole zip")
    listed = struct.unpack_from("<I", tail, at + 12)[0] if at + 16 <= len(tail) else 0
    large = tail.rfind(b"PK\x06\x06")  # the form for large archives says it again
    if large >= 0 and large + 48 <= len(tail):
        listed = max(listed % (2**32 - 1), struct.unpack_from("<Q", tail, large + 40)[0])
    if listed > LIST_BYTES:
        raise StillroomError(f"{source}: lists {listed / 2**20:.0f} MiB of names; not read")
    count, kept = 0, b""
    stream.seek(max(0, size - len(tail[at:]) - listed - 2**10))
    while piece := stream.read(2**20):
        count += (kept + piece).count(b"PK\x01\x02")
        kept = piece[-3:]
    if count > 2 * MOST_FILES:
        raise StillroomError(f"{source}: lists {count} files; a tree holds at most {MOST_FILES}")


def _listed(source: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """Names of all files of an archive, if every one of them is an honest one."""
    seen: set[str] = set()
    for info in archive.infolist():
        name, mode = info.orig_filename, info.external_attr >> 16
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or re.search(r"[\\\0]", name):
            raise StillroomError(f"{source}: holds the absolute or odd name {name[:80]!r}; refused")
        if ".." in name.split("/"):
            raise StillroomError(f"{source}: holds {name[:80]!r}, which leads out of it; refused")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise StillroomError(f"{source}: {name[:80]!r} is a link or a device; refused")
        if name.lower().endswith(".zip"):
            raise StillroomError(f"{source}: holds another zip, {name[:80]!r}; unpack it first")
        if name in seen:
            raise StillroomError(f"{source}: holds two files {name[:80]!r}; refused")
        seen.add(name)
        if not name.endswith("/"):
            yield name


def _places(source: Path, names: Iterator[str]) -> dict[Place, str]:
    """What of the files are statistics, all in one tree; others are left alone."""
    files: dict[Place, str] = {}
    tops: set[str] = set()
    for name in names:
        if (found := _PLACE.fullmatch(name)) is None:
            continue
        tops.add(found["top"])
        of = None if found["of"] is None else int(found["of"])
        files[Place(_HOOKS[found["hook"]], found["net"], found["layer"], of)] = name
        if len(files) > MOST_FILES:
            raise StillroomError(f"{source}: more than {MOST_FILES} files of statistics; not read")
    if not files:
        raise StillroomError(
            f"{source}: holds no ConvFeatureHook/.../running.npz; name the folder above "
            "ConvFeatureHook, or a zip of it"
        )
    if len(tops) > 1:
        first, second = sorted(tops)[:2]
        raise StillroomError(
            f"{source}: holds several trees ({first or './'} and {second}); name one of them"
        )
    return files


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
