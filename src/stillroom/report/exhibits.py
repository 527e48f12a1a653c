"""What the folder `exhibits/` of a set holds: foreign files, checked before they are shown."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillroom.distilled import MAX_SET_BYTES, Distilled
from stillroom.errors import StillroomError
from stillroom.files import MAX_CONFUSED, read_json
from stillroom.tables import Line

MAX_PAIRS = 50
MAX_ROWS = 10_000  # that something is kept of; those who write keep 100
MAX_EXHIBITS = 1000  # one a row, step, network and protocol
MAX_EXHIBIT_BYTES = 16 * 2**20
NEAR = 0.02  # a distance below which an image is nearly a copy of a real one
TOLERANCE = 0.01  # of a stored distance: real and distilled images may have been rounded to uint8
_Text = Annotated[str, Field(max_length=300)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Few = Field(max_length=MAX_CONFUSED)
# Only how many they are is shown; their curves, of a thousand files, would fill the memory.
_Students = Annotated[list[Any], AfterValidator(lambda students: [None] * len(students))]


class Exhibit(BaseModel):
    """What the students of one row took for what: `exhibits/students-*.json`.

    per_class [C], fractions; confusion [C][C], test images of a class (row) by the class that was
    seen in them, None of very many classes.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    row: _Text
    step: _Count | None
    set_key: _Text | None
    arch: _Text
    protocol_hash: _Text
    numerics: _Text
    data_digest: _Text
    ipc: _Count
    augment: _Text = ""
    taught: _Text = ""
    classes: list[_Text]
    students: _Students
    per_class: list[_Share]
    confusion: Annotated[list[Annotated[list[_Count], _Few]], _Few] | None

    @model_validator(mode="after")
    def _square(self) -> Exhibit:
        sizes = {len(self.classes), len(self.per_class)}
        if self.confusion is not None:
            sizes |= {len(self.confusion), *map(len, self.confusion)}
        if len(sizes) > 1:
            raise ValueError("classes, per_class and confusion differ in size")
        for c, row in enumerate(self.confusion or ()):
            if abs(row[c] / max(1, sum(row)) - self.per_class[c]) > 1e-6:
                raise ValueError(f"per_class {c} is not what confusion says")
        return self

    def belongs_to(self, line: Line) -> bool:
        """Whether the students are those of a line."""
        same = ("arch", "protocol_hash", "numerics", "data_digest", "ipc", "augment", "taught")
        return (self.row, self.step) == (line.row, line.step) and all(
            getattr(self, name) == getattr(line.conditions, name) for name in same
        )

    def shares(self) -> list[list[float]]:
        """The confusion as shares of the test images of a class."""
        return [[n / max(1, sum(row)) for n in row] for row in self.confusion or ()]


@dataclass(frozen=True)
class Neighbours:
    """The real training image nearest to each distilled one: all as numbers, some as pairs.

    rows int64 [P], of the set; images uint8 [P,ch,H,W], real; distance float32 [P]. `fits`:
    whether the distances are those of the set's images and not of other, older ones.
    """

    rows: Tensor
    images: Tensor
    distance: Tensor
    median: float
    near: int
    total: int
    fits: bool


@dataclass(frozen=True)
class Maps:
    """Where a trained network sees the class of some images.

    rows int64 [P], of the set; maps uint8 [P,H,W]; `active`: the mean share of an image whose map
    is at least half of its largest value, over all `total`.
    """

    rows: Tensor
    maps: Tensor
    arch: str
    layer: str
    active: float
    total: int


def read_exhibits(
    folder: Path, keys: frozenset[str], classes: Sequence[str]
) -> tuple[Exhibit, ...]:
    """The exhibits of students; those of images or classes of another set are left out.

    Raises: StillroomError naming the damaged file, or the folder that holds too many.
    """
    paths = sorted(islice(folder.glob("students-*.json"), MAX_EXHIBITS + 1))
    if len(paths) > MAX_EXHIBITS:
        raise StillroomError(
            f"{folder}: holds more than {MAX_EXHIBITS} files students-*.json; remove those that "
            "are not needed, `stillroom evaluate` writes them again"
        )
    found = []
    for path in paths:
        try:
            exhibit = Exhibit.model_validate(read_json(path, MAX_EXHIBIT_BYTES))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))[:80] or "it"
            raise StillroomError(
                f"{path}: {where}: {first['msg']}; remove it and evaluate the set again"
            ) from None
        current = exhibit.step is None or exhibit.set_key in keys
        if current and exhibit.classes == list(classes):
            found.append(exhibit)
    return tuple(found)


def read_neighbours(path: Path, data: Distilled) -> Neighbours | None:
    """Pairs of distilled and nearest real images, the closest of each class first; None: no file.

    Raises: StillroomError naming the damaged file.
    """
    if not path.is_file():
        return None
    with _archive(path) as archive:
        _check_shapes(path, archive, data)
        rows, distance = archive.get_tensor("rows"), archive.get_tensor("distance")
        known = (rows >= 0) & (rows < len(data)) & (distance >= 0) & (distance <= 1)
        if not bool(known.all()):
            raise StillroomError(f"{path}: rows or distances out of range; remove the file")
        chosen = _evenly(data.of_class[rows].tolist(), distance.tolist())
        images = archive.get_slice("images")  # read one by one: the file may be of any size
        real = torch.cat([images[i : i + 1] for i in chosen])
    near, median = int((distance < NEAR).sum()), float(distance.median())
    picked, apart = rows[chosen], distance[chosen]
    pixels = data.preprocess.invert(data.images[picked]).clamp(0, 1)
    off = (pixels - real / 255).square().mean((1, 2, 3)).sqrt() - apart
    fits = bool((off.abs() < TOLERANCE).all())
    return Neighbours(picked, real, apart, median, near, len(rows), fits)


def read_maps(path: Path, data: Distilled, key: str) -> Maps | None:
    """The maps of a set of this digest, as many of every class; None: no file, or another set's.

    Raises: StillroomError naming the damaged file.
    """
    if not path.is_file():
        return None
    with _archive(path) as archive:
        told = _told(path, archive.metadata())
        if told["set"] != key:
            return None
        _check_parts(path, archive, data, {"maps": ("U8", list(data.images.shape[2:]))})
        rows = archive.get_tensor("rows")
        if not bool(((rows >= 0) & (rows < len(data))).all()):
            raise StillroomError(f"{path}: rows out of range; remove the file")
        active = archive.get_tensor("maps").ge(128).double().mean()
        chosen = _evenly(data.of_class[rows].tolist(), [0.0] * len(rows))
        maps = archive.get_slice("maps")
        some = torch.cat([maps[i : i + 1] for i in chosen])
    return Maps(rows[chosen], some, told["arch"], told["layer"], float(active), len(rows))


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[Any]:
    """A foreign safetensors file, of which parts are read.

    Raises: StillroomError naming it, also for what goes wrong while it is read.
    """
    if path.stat().st_size > MAX_SET_BYTES:
        raise StillroomError(f"{path}: larger than 8 GiB; not read")
    try:
        with safe_open(path, framework="pt") as archive:
            yield archive
    except (SafetensorError, OSError) as error:
        why = str(error)[:120]
        raise StillroomError(f"{path}: not a whole safetensors file ({why})") from None


def _told(path: Path, metadata: dict[str, str] | None) -> dict[str, str]:
    """Network, layer and set of maps, all of them short texts."""
    try:
        told = json.loads((metadata or {}).get("stillroom", ""))
        found = {name: told[name] for name in ("arch", "layer", "set")}
    except (ValueError, KeyError, TypeError, RecursionError):
        found = {"": None}
    if not all(isinstance(text, str) and len(text) <= 300 for text in found.values()):
        raise StillroomError(
            f"{path}: does not say which network and set it is of; remove it, `stillroom assess` "
            "writes it again"
        )
    return found


def _check_shapes(path: Path, archive: Any, data: Distilled) -> None:
    """Judge the header of nearest real images, before anything of the tensors is read."""
    image = list(data.images.shape[1:])
    _check_parts(path, archive, data, {"distance": ("F32", []), "images": ("U8", image)})


def _check_parts(
    path: Path, archive: Any, data: Distilled, parts: dict[str, tuple[str, list[int]]]
) -> None:
    """Judge a header: rows int64 [M] of a set, and of each as many of every part."""
    names = {"rows", *parts} & set(archive.keys())
    slices = {name: archive.get_slice(name) for name in names}
    found = {name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()}
    m = next(iter(found.get("rows", ("", [0]))[1]), 0)
    wanted = {"rows": ("I64", [m])} | {n: (kind, [m, *one]) for n, (kind, one) in parts.items()}
    if found != wanted or not 1 <= m <= min(len(data), MAX_ROWS):
        told = ", ".join(f"{n} {kind} {['M', *one[1:]]}" for n, (kind, one) in wanted.items())
        raise StillroomError(
            f"{path}: must hold {told} with M in 1..{min(len(data), MAX_ROWS)}; remove it or make "
            "it again"
        )


def _evenly(classes: Sequence[int], distance: Sequence[float]) -> list[int]:
    """At most `MAX_PAIRS` places, as many of every class, the closest pairs of a class first."""
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(classes)), key=lambda i: (classes[i], distance[i], i)):
        groups.setdefault(classes[i], []).append(i)
    some = list(groups.values())[:: math.ceil(len(groups) / MAX_PAIRS)]
    return [i for group in some for i in group[: MAX_PAIRS // len(some)]]
