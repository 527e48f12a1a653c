"""The test images of the challenge: read as the organisers give them, or made from data sets."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.challenge.parts import IPC, PARTS, Part
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.data.preprocess import CONSTANTS
from stillroom.errors import StillroomError
from stillroom.files import read_limited, write_atomic
from stillroom.nets.zoo.weights import plain, read_checkpoint
from stillroom.rng import rng
from stillroom.types import Preprocess

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_BYTES = 2 * 2**30  # of a file of test images
EIGHT_BITS = 0.1  # of a grey level: how far test images may be from whole ones without a word
OTHERWISE = 1.0  # grey levels, from where on they were not normalised as the rules have it


def read_truth(folder: Path, part: Part, store: Path) -> tuple[Benchmark, list[str]]:
    """The test images and labels of a part, in `<folder>/<part>_test.pt`, and what was noticed.

    Images are normalised there and kept as 8 bits here, which is what they were made of.
    Raises: StillroomError naming the file if it is absent, damaged or something else.
    """
    path = folder / part.truth
    found: Any = read_checkpoint(path, read_limited(path, MAX_BYTES, "not read"), MAX_BYTES)
    if not isinstance(found, dict) or not {"images_val", "labels_val"} <= found.keys():
        raise StillroomError(f"{path}: must hold a dict of images_val and labels_val")
    images, labels = _images(path, found["images_val"], part), _labels(path, found, part)
    space = preprocess(part)
    pixels = space.invert(images.float()) * 255
    whole = pixels.round().clamp(0, 255)
    off = float((pixels - whole).abs().max())
    if off > OTHERWISE:
        raise StillroomError(
            f"{path}: images_val is up to {off:.3g} grey levels away from images under the "
            f"constants of {part.benchmark}; normalise them so, or write the file with: stillroom "
            "challenge reference"
        )
    notes = [f"{part.truth}: rounded by up to {off:.2g} of 255 levels"] if off > EIGHT_BITS else []
    x, y = whole.to(torch.uint8), labels.long()
    made = from_arrays(
        x,
        y,
        x,
        y,
        classes=tuple(str(c) for c in range(part.classes)),
        name=f"{part.name}-test",
        normalise=part.benchmark,
        store=store,
    )
    return made, notes


def _images(path: Path, x: Any, part: Part) -> Tensor:
    wanted = (3, part.size, part.size)
    if not isinstance(x, Tensor) or x.ndim != 4 or tuple(x.shape[1:]) != wanted or not len(x):
        told = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise StillroomError(
            f"{path}: images_val is {told}, not [N, {', '.join(map(str, wanted))}]"
        )
    if not plain(x) or not x.is_floating_point() or not bool(torch.isfinite(x).all()):
        raise StillroomError(f"{path}: images_val must be finite floats, normalised")
    return x


def _labels(path: Path, found: dict[str, Any], part: Part) -> Tensor:
    y: Any = found["labels_val"]
    count = len(found["images_val"])
    if isinstance(y, list) and all(type(one) is int and abs(one) < 2**31 for one in y):
        y = torch.tensor(y)
    fits = isinstance(y, Tensor) and plain(y) and y.dtype in WHOLE and y.shape == (count,)
    if not fits or not 0 <= int(y.min()) <= int(y.max()) < part.classes:
        raise StillroomError(
            f"{path}: labels_val must be {count} whole numbers from 0 to {part.classes - 1}"
        )
    absent = sorted({*range(part.classes)} - {*y.tolist()})
    if absent:
        raise StillroomError(f"{path}: no image of class {absent[0]} of {part.classes}")
    return torch.as_tensor(y)


def preprocess(part: Part) -> Preprocess:
    """From pixels in [0, 1] to the space of the challenge."""
    mean, std = CONSTANTS[part.benchmark]
    return Preprocess(part.benchmark, mean, std)


def copies(images: Tensor, part: Part, bench: Benchmark) -> int:
    """How many submitted images [N,3,H,W] are test images, as 8 bits."""
    pixels = (preprocess(part).invert(images) * 255).round().clamp(0, 255).to(torch.uint8)
    known = {one.numpy().tobytes() for one in bench.test.take(torch.arange(len(bench.test))).cpu()}
    return sum(one.numpy().tobytes() in known for one in pixels)


def check_data(bench: Benchmark, part: Part) -> None:
    """Refuse data of other classes or another size.

    Raises: StillroomError with the remedy.
    """
    if len(bench.classes) != part.classes or (bench.channels, bench.size) != (3, part.size):
        told = "" if bench.size == part.size else " (see --size)"
        raise StillroomError(
            f"{bench.name}: {len(bench.classes)} classes of {bench.channels} x {bench.size} x "
            f"{bench.size}; {part.name} needs {part.classes} of 3 x {part.size} x {part.size}{told}"
        )


def write_reference(bench: Benchmark, part: Part, folder: Path) -> Path:
    """Write the test images of a data set as the organisers' evaluator reads them."""
    check_data(bench, part)
    images = preprocess(part).apply(bench.test.take(torch.arange(len(bench.test))))
    _save({"images_val": images.cpu(), "labels_val": bench.test.labels.cpu()}, folder / part.truth)
    return folder / part.truth


def write_sample(bench: Benchmark, part: Part, folder: Path, seed: int) -> Path:
    """Write ten real training images a class, drawn by key: the random submission."""
    check_data(bench, part)
    rows = []
    for c, name in enumerate(bench.classes):
        mine = bench.train.rows_of(c)
        if len(mine) < IPC:
            raise StillroomError(f"{bench.name}: class {name!r} has {len(mine)} images, not {IPC}")
        drawn = torch.randperm(len(mine), generator=rng(seed, "challenge", part.name, c))[:IPC]
        rows.append(mine[drawn])
    write_part(preprocess(part).apply(bench.train.take(torch.cat(rows))), part, folder)
    return folder / part.file


def write_part(images: Tensor, part: Part, folder: Path) -> None:
    """Write images float32 [N,3,H,W] in the space of the challenge as one part."""
    assert tuple(images.shape) == part.shape
    _save(images.cpu().float().contiguous(), folder / part.file)


def write_parts(images: Mapping[Part, Tensor], folder: Path) -> None:
    """Write the parts of a submission, all of them or, where one cannot be written, none."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for part, own in images.items():
            write_part(own, part, folder)
    except BaseException:
        for part in images:
            (folder / part.file).unlink(missing_ok=True)
        raise


def _save(value: Any, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomic(path, buffer.getvalue())


def part_of(classes: int, size: int, name: str) -> Part:
    """The part that a set of so many classes of this size belongs to.

    Raises: StillroomError naming the set.
    """
    for part in PARTS.values():
        if (part.classes, part.size) == (classes, size):
            return part
    known = ", ".join(f"{p.name} {p.classes} of {p.size} px" for p in PARTS.values())
    raise StillroomError(f"{name}: {classes} classes of {size} pixels; parts are {known}")
