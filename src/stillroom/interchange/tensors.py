"""Sets of other programs as tensors in files: images, labels, maybe a learned rate.

The three files that trajectory-matching repositories write (`images_best.pt`, `labels_best.pt`,
`lr_best.pt`; specification of trajectory matching, 5.3), and what `export --to tensors` writes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.files import read_limited, sha256_file
from stillroom.nets.zoo.weights import plain, read_checkpoint
from stillroom.types import LabelKind

MAX_BYTES = 2 * 2**30  # of one file
MOST_RATE = 1e6  # as of every set
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
SUM_TO_ONE = 1e-3  # how far a row of probabilities may be from 1


def imported(
    bench: Benchmark,
    images: Path,
    labels: Path,
    lr: Path | None = None,
    *,
    kind: Literal["auto", "hard", "probs", "logits"] = "auto",
    space: Literal["network", "pixels"] = "network",
    augment: str = "none",
    arch: str = "none",
    label: str = "imported",
) -> tuple[Distilled, list[str]]:
    """A set out of foreign files, and in words what was concluded about it.

    images [N,ch,H,W]: float in the network space of `bench`, or pixels, uint8 or float in [0, 1].
    labels: int [N], or float [N,C] as `kind` says; "auto" takes rows that sum to 1 for "probs".
    lr: a number. Rows are sorted by class; a soft label's class is that of its place where images
    are class after class, else its largest entry.
    Raises: StillroomError naming the file that is absent, too large, damaged, holds more than
    tensors, or has another shape, kind or range of values.
    """
    x = _images(images, _tensor(images), bench, space)
    y, found = _labels(labels, _tensor(labels), len(x), len(bench.classes), kind)
    of_class = y if found == "hard" else _classes(y)
    order = of_class.argsort(stable=True)
    rate = None if lr is None else _rate(lr, _tensor(lr))
    notes = [f"labels: {found}"]
    if space == "network" and bench.preprocess.name != "none" and _like_pixels(x):
        notes.append("all values lie from 0 to 1: if these are pixels, say --space pixels")
    if absent := sorted({*range(len(bench.classes))} - {*of_class.tolist()}):
        names = ", ".join(bench.classes[c] for c in absent[:3])
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        notes.append(f"no image is of class {names}{more}")
    files = {"images": images, "labels": labels, **({} if lr is None else {"lr": lr})}
    told = {"imported": {name: sha256_file(path) for name, path in files.items()}}
    made = Distilled(
        images=x[order].contiguous(),
        labels=y[order].contiguous(),
        label_kind=found,
        of_class=of_class[order].contiguous(),
        classes=bench.classes,
        preprocess=bench.preprocess,
        augment=augment,
        arch=arch,
        lr=rate,
        data={k: v for k, v in bench.describe().items() if k not in ("classes", "notes")},
        provenance={"label": label, "papers": [], **told},
    )
    return made, notes


def _tensor(path: Path) -> Tensor:
    """The one tensor of a file, dense and on the CPU."""
    limit = MAX_BYTES
    found: Any = read_checkpoint(path, read_limited(path, limit, "not read"), limit)
    if isinstance(found, dict | list | tuple) and len(found) == 1:
        found = next(iter(found.values() if isinstance(found, dict) else found))
    if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < MOST_RATE:
        found = torch.tensor(float(found))
    if not isinstance(found, Tensor) or not plain(found):
        raise StillroomError(f"{path}: holds a {type(found).__name__}, not one plain tensor")
    if 4 * found.numel() > limit or found.dtype not in DTYPES:
        raise StillroomError(f"{path}: {found.dtype} {list(found.shape)} is not what a set holds")
    return found.detach()


def _images(path: Path, x: Tensor, bench: Benchmark, space: str) -> Tensor:
    wanted = (bench.channels, bench.size, bench.size)
    if x.ndim != 4 or tuple(x.shape[1:]) != wanted or not len(x):
        raise StillroomError(
            f"{path}: images of shape {list(x.shape)}; {bench.name} here needs [N, "
            f"{', '.join(map(str, wanted))}] (see --size)"
        )
    if x.dtype == torch.uint8:
        return bench.preprocess.apply(x)
    if not x.is_floating_point():
        raise StillroomError(f"{path}: images of {x.dtype}; float or uint8 are needed")
    x = x.float()
    if not bool(torch.isfinite(x).all()):
        raise StillroomError(f"{path}: holds NaN or infinite pixels")
    if space == "network":
        return x
    if not _like_pixels(x):
        raise StillroomError(
            f"{path}: values from {float(x.min()):.3g} to {float(x.max()):.3g} are no pixels in "
            "[0, 1]; leave --space pixels out if they are normalised"
        )
    return bench.preprocess.apply((x * 255).round().to(torch.uint8))


def _like_pixels(x: Tensor) -> bool:
    return float(x.min()) >= 0 and float(x.max()) <= 1


def _labels(path: Path, y: Tensor, count: int, classes: int, kind: str) -> tuple[Tensor, LabelKind]:
    if not y.is_floating_point():
        y = y.flatten().long()
        if kind not in ("auto", "hard"):
            raise StillroomError(f"{path}: whole numbers are classes, not {kind}")
        if len(y) != count or not bool(((y >= 0) & (y < classes)).all()):
            raise StillroomError(
                f"{path}: needs {count} labels, one an image, each a class from 0 to "
                f"{classes - 1}; got {len(y)} from {int(y.min()) if len(y) else '-'} to "
                f"{int(y.max()) if len(y) else '-'}"
            )
        return y, "hard"
    y = y.float()
    if y.shape != (count, classes) or not bool(torch.isfinite(y).all()):
        raise StillroomError(
            f"{path}: {list(y.shape)} labels; [{count}, {classes}] finite numbers are needed"
        )
    sums = bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < SUM_TO_ONE).all())
    if kind == "hard":
        raise StillroomError(f"{path}: soft labels, not classes; say --kind logits or probs")
    if kind == "probs" and not sums:
        raise StillroomError(f"{path}: rows do not sum to 1; say --kind logits")
    return y, "probs" if kind == "probs" or (kind == "auto" and sums) else "logits"


def _classes(y: Tensor) -> Tensor:
    """The class int64 [N] that each soft label [N,C] was made for."""
    count, classes = y.shape
    largest = y.argmax(1)
    if count % classes:
        return largest
    placed = torch.arange(classes).repeat_interleave(count // classes)
    return placed if int((placed == largest).sum()) * 2 > count else largest


def _rate(path: Path, value: Tensor) -> float:
    rate = float(value.double()) if value.numel() == 1 else math.nan
    if not 0 < rate < MOST_RATE:
        raise StillroomError(
            f"{path}: a learned rate is one positive number below {MOST_RATE:g}, not {rate:g}"
        )
    return rate
