"""The images of a set as sprites: one PNG a class, tiles in rows of ten, as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from stillroom.distilled import Distilled
from stillroom.report.exhibits import Maps, Neighbours

MAX_CLASSES = 20
MAX_PER_CLASS = 20
COLUMNS = 10
PIXELS = 1_600_000  # of all tiles of a set together, beyond which they are shown smaller
NATIVE = 64  # a side up to which tiles are never reduced
LARGEST = 128
COVER = 340  # CSS pixels that the cover is wide, at most


@dataclass(frozen=True)
class Sprite:
    """One PNG and how to show it: its natural size, the size on the page, and its words."""

    name: str
    count: int
    shown: int
    uri: str
    width: int
    height: int
    sharp: bool

    @property
    def alt(self) -> str:
        """The picture in words."""
        images = "1 image" if self.shown == 1 else f"{self.shown} images"
        return f"{images} of class {self.name}"


@dataclass(frozen=True)
class Gallery:
    """The sprites of a set and what was left out or reduced, in words."""

    sprites: tuple[Sprite, ...]
    cover: Sprite
    notes: tuple[str, ...]


def gallery(data: Distilled) -> Gallery:
    """At most 20 classes with 20 images each; class order and image order are the set's."""
    present = [c for c in range(len(data.classes)) if bool((data.of_class == c).any())]
    chosen = {c: (data.of_class == c).nonzero().flatten() for c in present[:MAX_CLASSES]}
    picked = {c: rows[:MAX_PER_CLASS] for c, rows in chosen.items()}
    shown = sum(map(len, picked.values()))
    side = max(data.images.shape[-2:])
    target = _side(side, shown)
    widest = min(COLUMNS, max(map(len, picked.values())))
    css = 72 if widest == 1 else 64 if widest <= 5 else 44
    rows = torch.cat(list(picked.values()))
    pixels = dict(zip(rows.tolist(), _pixels(data, rows), strict=True))
    sprites = []
    for c, mine in picked.items():
        tiles = [_tile(pixels[row], target) for row in mine.tolist()]
        sprites.append(_sprite(data.classes[c], len(chosen[c]), tiles, COLUMNS, css))
    first = [_tile(pixels[int(mine[0])], target) for mine in picked.values()]
    columns = _columns(len(first))
    cover = _sprite("", len(first), first, columns, min(72, COVER // columns))
    return Gallery(tuple(sprites), cover, tuple(_notes(data, present, shown, side, target)))


def pairs(data: Distilled, found: Neighbours) -> list[tuple[Sprite, str]]:
    """A distilled image over the real one that is nearest to it, with the distance."""
    apart = [f"{float(gap):.2f}" for gap in found.distance]
    return list(zip(_over(data, found.rows, found.images), apart, strict=True))


def seen(data: Distilled, found: Maps) -> list[tuple[Sprite, str]]:
    """An image over itself, darkened where the network does not see its class; its active share."""
    light = 0.15 + 0.85 * found.maps.double() / 255
    below = (_pixels(data, found.rows) * light.unsqueeze(1)).round().to(torch.uint8)
    shares = found.maps.ge(128).double().mean((1, 2))
    return list(zip(_over(data, found.rows, below), [f"{s:.0%}" for s in shares], strict=True))


def _over(data: Distilled, rows: Tensor, below: Tensor) -> list[Sprite]:
    """Images of a set, each over another picture uint8 [P,ch,H,W]."""
    names = [data.classes[c] for c in data.of_class[rows].tolist()]
    return over(names, _pixels(data, rows), below)


def over(names: Sequence[str], made: Tensor, below: Tensor) -> list[Sprite]:
    """Pictures uint8 [P,ch,H,W] of named classes, each over another one."""
    target = _side(max(made.shape[-2:]), 2 * len(made))
    return [
        _sprite(name, 2, [_tile(a, target), _tile(b, target)], 1, 56)
        for name, a, b in zip(names, made, below, strict=True)
    ]


def _notes(data: Distilled, present: list[int], shown: int, side: int, target: int) -> list[str]:
    notes = []
    if shown < len(data):
        classes = f"; {len(present) - MAX_CLASSES} classes" if len(present) > MAX_CLASSES else ""
        notes.append(
            f"{len(data) - shown} of {len(data)} images are left out{classes}.".replace(
                "out; ", "out, and with them "
            )
        )
    empty = len(data.classes) - len(present)
    if empty:
        notes.append(f"{empty} of {len(data.classes)} classes have no image.")
    if target < side:
        notes.append(f"Reduced from {side} to {target} pixels for this page.")
    if data.tiles > 1:
        notes.append(f"Each image is a canvas of {data.tiles} × {data.tiles} smaller pictures.")
    if data.images.shape[1] not in (1, 3):
        seen = "first is" if data.images.shape[1] == 2 else "first three are"
        notes.append(f"Of {data.images.shape[1]} channels the {seen} shown.")
    return notes


def _columns(count: int) -> int:
    """Columns of a wide rectangle with the fewest empty places: 5 of 10, 5 of 20, 4 of 7."""
    least = math.isqrt(count - 1) + 1
    return min(range(least, 2 * least), key=lambda columns: (-count % columns, columns))


def _side(side: int, count: int) -> int:
    """The side of a tile in the file: native if small, else what `PIXELS` leaves room for."""
    room = max(NATIVE, min(LARGEST, math.isqrt(PIXELS // max(1, count))))
    return min(side, room)


def _pixels(data: Distilled, rows: Tensor) -> Tensor:
    some = data.preprocess.invert(data.images[rows]).clamp(0, 1)
    return (some * 255).round().to(torch.uint8).cpu()  # [n,ch,H,W]


def _tile(pixels: Tensor, target: int) -> Image.Image:
    """uint8 [ch,H,W] -> a picture whose larger side is at most `target`."""
    if pixels.shape[0] < 3:
        image = Image.fromarray(pixels[0].contiguous().numpy())
    else:
        image = Image.fromarray(pixels[:3].permute(1, 2, 0).contiguous().numpy())
    if max(image.size) > target:
        image.thumbnail((target, target), Image.Resampling.LANCZOS)
    return image


def _sprite(name: str, count: int, tiles: list[Image.Image], columns: int, css: int) -> Sprite:
    """Tiles in rows with transparent gaps, shown about `css` pixels wide, a whole multiple."""
    wide, high = tiles[0].size
    columns = min(columns, len(tiles))
    gap = max(1, round(max(wide, high) / 16))
    lines = math.ceil(len(tiles) / columns)
    size = (columns * (wide + gap) - gap, lines * (high + gap) - gap)
    grey = tiles[0].mode == "L"
    sheet = Image.new("LA" if grey else "RGBA", size)
    for i, tile in enumerate(tiles):
        opaque = tile.convert("LA" if grey else "RGBA")
        sheet.paste(opaque, (i % columns * (wide + gap), i // columns * (high + gap)))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    sharp = max(wide, high) <= NATIVE
    scale = css / max(wide, high)
    scale = max(1, round(scale)) if sharp else min(1, scale)
    return Sprite(
        name=name,
        count=count,
        shown=len(tiles),
        uri=uri,
        width=round(size[0] * scale),
        height=round(size[1] * scale),
        sharp=sharp,
    )
