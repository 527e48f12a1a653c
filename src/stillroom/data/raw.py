"""What a reader finds before any image is decoded: labels, class names, and how to read images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.data.decode import Pixels
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256

Labels = NDArray[np.int64]
Payload = bytes | Path | Pixels
TEST_NAMES = ("test", "val", "valid", "validation")
MAX_CLASS_NAME = 300


@dataclass(frozen=True, eq=False)
class RawSplit:
    """One split, unread.

    labels int64 [N]; `images()` starts a fresh pass over N pairs (name, payload) in row order,
    where a payload is encoded bytes, the path of an image file, or uint8 [H,W] or [H,W,3].
    """

    labels: Labels
    images: Callable[[], Iterator[tuple[str, Payload]]]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class RawSplits:
    """The splits that a reader found: "train" and, where the source has one, "test".

    `listing` is JSON: everything cheap that tells this source from another (resolved path, names,
    sizes, modification times). It keys the cache and never enters a digest of the data. `empty`:
    classes that are to have no image.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, RawSplit]
    listing: list[Any]
    empty: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hex SHA-256 of the listing."""
        return sha256(canonical(self.listing))

    def unfilled(self, labels: Labels) -> list[str]:
        """The classes that none of the labels int64 [N] is of, and should be."""
        counts = np.bincount(labels, minlength=len(self.classes))
        some = zip(self.classes, counts.tolist(), strict=True)
        return [name for name, count in some if not count and name not in self.empty]


def array_split(images: Iterable[Pixels], labels: Sequence[int] | Labels, name: str) -> RawSplit:
    """A split that is already in memory; `images` must be re-iterable, one array a label."""
    return RawSplit(
        np.asarray(labels, dtype=np.int64),
        lambda: ((f"{name} image {i}", array) for i, array in enumerate(images)),
    )


def file_split(files: Sequence[tuple[Path, int]], root: Path) -> RawSplit:
    """A split of image files with their labels; errors name files relative to `root`."""
    labels = np.array([label for _, label in files], dtype=np.int64)
    return RawSplit(labels, lambda: ((f.relative_to(root).as_posix(), f) for f, _ in files))


def stamp(root: Path, files: Iterable[Path]) -> list[Any]:
    """Listing of some files: the resolved root, then name, size and mtime_ns of each."""
    rows: list[Any] = [str(root.resolve())]
    for path in files:
        status = path.stat()
        rows.append([path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns])
    return rows


def select(raw: RawSplits, wanted: Mapping[int, str]) -> RawSplits:
    """Keep the classes whose old label is a key of `wanted`, in its order and under its names."""
    renumber = np.full(len(raw.classes), -1, dtype=np.int64)
    for new, old in enumerate(wanted):
        renumber[old] = new
    return RawSplits(
        classes=tuple(wanted.values()),
        splits={name: _kept(split, renumber) for name, split in raw.splits.items()},
        listing=[*raw.listing, {"select": list(wanted.items())}],
    )


def _kept(split: RawSplit, renumber: Labels) -> RawSplit:
    labels = renumber[split.labels]
    keep = (labels >= 0).tolist()
    return RawSplit(
        labels[labels >= 0],
        lambda: (item for item, kept in zip(split.images(), keep, strict=True) if kept),
    )


def check(raw: RawSplits, source: str) -> RawSplits:
    """Return `raw` if its class names and labels are sound.

    Raises: StillroomError naming `source` and the class for an empty, repeated, overlong or
    unprintable class name, a label outside the classes, or a class without a training image.
    """
    seen: set[str] = set()
    for name in raw.classes:
        if not 0 < len(name) <= MAX_CLASS_NAME:
            raise StillroomError(
                f"{source}: class name {name[:40]!r} must have 1 to {MAX_CLASS_NAME} letters"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise StillroomError(f"{source}: class name {name!a} is not valid text; rename it")
        if name in seen:
            raise StillroomError(f"{source}: two classes are named {name!r}; rename one")
        seen.add(name)
    for name, split in raw.splits.items():
        if len(split) == 0:
            raise StillroomError(f"{source}: the {name} split has no image")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(raw.classes):
            raise StillroomError(
                f"{source}: {name} label {low if low < 0 else high} is outside "
                f"0..{len(raw.classes) - 1} ({len(raw.classes)} classes)"
            )
    if missing := raw.unfilled(raw.splits["train"].labels):
        raise StillroomError(
            f"{source}: class {missing[0]!r} has no training image; add some or remove the class"
        )
    return raw
