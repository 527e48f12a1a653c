"""`Benchmark`: real data ready for a run, whatever they came from."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stillroom.data.arrays import Array, MapDataset, raw_arrays, raw_dataset
from stillroom.data.cache import Decoded, cached, find_by_content, in_memory
from stillroom.data.chosen import only
from stillroom.data.named import EMBEDDED, NAMED, find, kin, known
from stillroom.data.preprocess import choose, whitened
from stillroom.data.raw import RawSplits
from stillroom.data.source import ImageSource
from stillroom.data.splits import carve_val, shared_images, split_off_test
from stillroom.data.whitening import whitening
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256
from stillroom.types import Preprocess

__all__ = [
    "NAMED",
    "Benchmark",
    "DataSpec",
    "folder_images",
    "from_arrays",
    "from_dataset",
    "load_benchmark",
    "reopen",
]

MAX_SIZE = 2048
MAX_NAME = 300
GIVEN = "given"
DRAWN = "keyed stratified 80/20"


@dataclass(frozen=True)
class DataSpec:
    """What the user said about the data.

    `data` is a named benchmark, `hf:owner/name[:config]` or a folder; `size` overrides the side
    of the square images; `val` is the share of every class carved from train for validation;
    `classes` a file that names those to take, one a line, in the order of their labels.
    """

    data: str
    data_root: Path | None = None
    size: int | None = None
    normalise: str = "auto"
    zca: bool = False
    val: float = 0.0
    split_seed: int = 0
    skip_bad: bool = False
    classes: Path | None = None


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Real data: images as uint8, how they reach network space, and what they are called.

    `digest` identifies pixels, labels, class names, splits and preprocessing; `content` only what
    was decoded. `split` says where the test images come from ("given", or how they were drawn).
    `duplicates` counts test images that are also training images, None if that was not counted.
    `known` is the named benchmark that these data are, if any: what is published for it applies.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    preprocess: Preprocess
    train: ImageSource
    val: ImageSource | None
    test: ImageSource
    digest: str
    split: str
    notes: tuple[str, ...]
    content: str
    val_share: float
    split_seed: int
    duplicates: int | None
    known: str | None

    @property
    def like(self) -> str | None:
        """The named benchmark whose augmentation and network suit: also that of other classes."""
        return self.known or kin(self.name)

    def describe(self) -> dict[str, Any]:
        """Return JSON from which `reopen` finds the same benchmark; it holds no path."""
        return {
            "name": self.name,
            "content": self.content,
            "classes": list(self.classes),
            "size": self.size,
            "channels": self.channels,
            "normalise": "none" if self.preprocess.zca else self.preprocess.name,
            "zca": self.preprocess.zca is not None,
            "val": self.val_share,
            "split": self.split,
            "split_seed": self.split_seed,
            "digest": self.digest,
            "counts": {
                "train": len(self.train),
                "val": len(self.val) if self.val is not None else 0,
                "test": len(self.test),
            },
            "duplicates": self.duplicates,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Choices:
    """How decoded pixels become a benchmark."""

    name: str
    normalise: str = "auto"
    zca: bool = False
    val: float = 0.0
    split_seed: int = 0


def load_benchmark(spec: DataSpec, store: Path) -> Benchmark:
    """Find the data of `spec`, decode them into the store if they are not there, and split them.

    Raises: StillroomError for every kind of bad input, in one line with the remedy.
    """
    _check_size(spec.size)
    found = find(spec.data, spec.data_root)
    if spec.classes is not None:
        found = only(found, spec.classes)
    decoded = cached(found.raw, store, spec.size or found.size, spec.skip_bad)
    choices = _Choices(found.name, spec.normalise, spec.zca, spec.val, spec.split_seed)
    return _assemble(decoded, choices, found.constants, store)


def reopen(described: dict[str, Any], store: Path) -> Benchmark:
    """Rebuild the benchmark that `Benchmark.describe` described out of the store's cache alone.

    `described` may come from a foreign set: it is checked, and nothing in it is trusted.
    Raises: StillroomError if it is malformed, the store lacks the data, or the digest differs.
    """
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "content": str,
        "normalise": str,
        "zca": bool,
        "val": (int, float),
        "split_seed": int,
        "digest": str,
    }
    for field, kind in kinds.items():
        if not isinstance(described.get(field), kind):
            raise StillroomError(
                f"the description of the data lacks a sound field {field!r}; pass --data"
            )
    if len(described["name"]) > MAX_NAME:
        raise StillroomError(f"the name of the data exceeds {MAX_NAME} letters; pass --data")
    if not re.fullmatch(r"[0-9a-f]{64}", described["content"]):
        raise StillroomError("the description of the data has no content digest; pass --data")
    decoded = _embedded_or_found(described, store)
    names = ("name", "normalise", "zca", "val", "split_seed")
    bench = _assemble(decoded, _Choices(**{n: described[n] for n in names}), None, store)
    if bench.digest != described["digest"]:
        raise StillroomError(
            f"the data of {bench.name[:80]!r} in the store have digest {bench.digest[:16]}, not "
            f"{described['digest'][:16]}; pass --data"
        )
    return bench


def _embedded_or_found(described: dict[str, Any], store: Path) -> Decoded:
    """The decoded copy; of data that come with the package another is made if there is none."""
    try:
        return find_by_content(store, described["content"])
    except StillroomError:
        if described["name"] != EMBEDDED:
            raise
        found = find(EMBEDDED, None)
        decoded = cached(found.raw, store, found.size, False)  # no size that a set asks for
        if decoded.content != described["content"]:
            raise
        return decoded


def folder_images(folder: Path, bench: Benchmark, store: Path) -> tuple[Tensor, Tensor]:
    """Images and classes of a class folder that has the classes of `bench`: where to start from.

    Returns (float32 [N,ch,H,W] pixels in [0, 1], int64 [N]), all images of its train split.
    Raises: StillroomError if its classes or channels are not those of `bench`.
    """
    found = find(str(folder), None)
    decoded = cached(found.raw, store, bench.size, skip_bad=False)
    if decoded.classes != bench.classes:
        raise StillroomError(
            f"{folder}: its classes ({', '.join(decoded.classes[:3])}, ...) are not those of "
            f"{bench.name} ({', '.join(bench.classes[:3])}, ...)"
        )
    pixels = decoded.train.images.float() / 255
    if decoded.channels != bench.channels:
        if decoded.channels != 1:
            raise StillroomError(f"{folder}: colour images, but {bench.name} is grey")
        pixels = pixels.expand(-1, bench.channels, -1, -1)
    return pixels, decoded.train.labels


def from_arrays(
    images: Array,
    labels: Array | Sequence[int],
    test_images: Array | None = None,
    test_labels: Array | Sequence[int] | None = None,
    *,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    name: str = "arrays",
    normalise: str = "auto",
    zca: bool = False,
    val: float = 0.0,
    split_seed: int = 0,
    store: Path | None = None,
    empty: Collection[str] = (),
) -> Benchmark:
    """Make a benchmark of uint8 images [N,H,W], [N,H,W,ch] or [N,ch,H,W] and integer labels [N].

    Names default to the label numbers. With a `store`, a decoded copy is kept there, so that
    stages and `stillroom evaluate` find the data again; without one the data stay in memory.
    `empty`: classes that have no image, such as a number that a published list skips.
    Raises: StillroomError for other dtypes and shapes, or labels that do not fit.
    """
    if (test_images is None) != (test_labels is None):
        raise StillroomError("test_images and test_labels must be given together")
    test = None
    if test_images is not None and test_labels is not None:
        test = (test_images, test_labels)
    _check_size(size)
    raw = raw_arrays((images, labels), test, classes, name, empty)
    return _from_raw(raw, size, _Choices(name, normalise, zca, val, split_seed), store)


def from_dataset(
    dataset: MapDataset,
    test: MapDataset | None = None,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    name: str = "dataset",
    normalise: str = "auto",
    *,
    zca: bool = False,
    val: float = 0.0,
    split_seed: int = 0,
    store: Path | None = None,
) -> Benchmark:
    """Make a benchmark of any map-style `torch.utils.data.Dataset` of (image, integer label).

    An image is a Pillow image, uint8 numpy [H,W,ch], or a tensor [ch,H,W], uint8 or float in
    [0, 1]. Names are `classes`, else `dataset.classes`, else the label numbers. `store` is as for
    `from_arrays`.
    Raises: StillroomError for normalised or randomly augmented images, and other items.
    """
    _check_size(size)
    raw = raw_dataset(dataset, test, classes, size, name)
    return _from_raw(raw, size, _Choices(name, normalise, zca, val, split_seed), store)


def _from_raw(raw: RawSplits, size: int | None, choices: _Choices, store: Path | None) -> Benchmark:
    decoded = in_memory(raw, size) if store is None else cached(raw, store, size, skip_bad=False)
    return _assemble(decoded, choices, None, store)


def _assemble(
    decoded: Decoded, choices: _Choices, default: str | None, store: Path | None
) -> Benchmark:
    if choices.zca and choices.normalise not in ("auto", "none"):
        raise StillroomError(
            f"zca whitens raw pixels, so it excludes normalise={choices.normalise!r}; drop one"
        )
    train, test, split = decoded.train, decoded.test, GIVEN
    if test is None:
        train, test = split_off_test(train, decoded.classes, choices.split_seed)
        split = DRAWN
    duplicates = shared_images(train, test)
    train, val = carve_val(train, decoded.classes, choices.val, choices.split_seed)
    drawn = val is not None or split == DRAWN
    same = known(choices.name, len(decoded.classes), decoded.channels, decoded.size)
    identity: dict[str, Any] = {
        "content": decoded.content,
        "split": split,
        "split_seed": choices.split_seed if drawn else None,
        "val": float(choices.val),
    }
    if choices.zca:
        preprocess = whitened(train, whitening(train, sha256(canonical(identity)), store))
    else:
        default = default or (NAMED[same].constants if same else None)
        preprocess = choose(choices.normalise, train, default)
    return Benchmark(
        name=choices.name,
        classes=decoded.classes,
        channels=decoded.channels,
        size=decoded.size,
        preprocess=preprocess,
        train=train,
        val=val,
        test=test,
        digest=sha256(canonical(identity | {"preprocess": preprocess.describe()})),
        split=split,
        notes=_notes(decoded, split, duplicates),
        content=decoded.content,
        val_share=float(choices.val),
        split_seed=choices.split_seed,
        duplicates=duplicates,
        known=same,
    )


def _notes(decoded: Decoded, split: str, duplicates: int | None) -> tuple[str, ...]:
    notes = []
    if split != GIVEN:
        notes.append(f"the data have no test split: it was drawn ({split})")
    if decoded.resized:
        notes.append(
            f"{decoded.resized} images of another shape were resized to "
            f"{decoded.size}x{decoded.size}"
        )
    if decoded.skipped:
        some = ", ".join(name[-80:] for name in decoded.skipped[:5])
        more = f" and {len(decoded.skipped) - 5} more" if len(decoded.skipped) > 5 else ""
        notes.append(f"{len(decoded.skipped)} unreadable images were left out: {some}{more}")
    if duplicates:
        notes.append(f"{duplicates} test images are byte-identical to a training image")
    if duplicates is None:
        notes.append("images in both train and test were not counted: the data exceed 4 GiB")
    return tuple(notes)


def _check_size(size: int | None) -> None:
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise StillroomError(f"size={size} must be between 1 and {MAX_SIZE}")
