"""`ImageSource`: uint8 images and their labels, in memory or mapped from the cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import StillroomError

SHARE = 4  # data may take up a quarter of a memory; the rest is for networks and their gradients


@dataclass(frozen=True, eq=False, init=False)
class ImageSource:
    """Images uint8 [N,ch,H,W] with labels int64 [N].

    Read images through `take`. `stored` is what is kept: row i is `stored[i]`, or
    `stored[index[i]]` where `index` int64 [N] is set (part of a mapped file too large to copy).
    Labels and index are on the CPU; `stored` may be on a device.
    """

    stored: Tensor
    labels: Tensor
    index: Tensor | None

    def __init__(self, images: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Raise StillroomError unless images are uint8 [M,ch,H,W] and labels int64, one a row."""
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise StillroomError(
                f"images must be uint8 [N,ch,H,W], got {images.dtype} {list(images.shape)}"
            )
        rows = len(images) if index is None else len(index)
        if labels.dtype != torch.int64 or labels.shape != (rows,):
            raise StillroomError(
                f"labels must be int64 [{rows}], got {labels.dtype} {list(labels.shape)}"
            )
        object.__setattr__(self, "stored", images)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "index", index)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images uint8 [N,ch,H,W]; a copy of all of them where `index` is set."""
        return self.stored if self.index is None else self.stored[self.index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(ch, H, W) of every image."""
        channels, height, width = self.stored.shape[1:]
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """Bytes of the N images, whether in memory or mapped."""
        channels, height, width = self.shape
        return len(self) * channels * height * width

    def take(self, rows: Tensor, device: torch.device | None = None) -> Tensor:
        """Return images uint8 [B,ch,H,W] of `rows` int64 [B], on `device` or where they lie."""
        at = rows if self.index is None else self.index[rows.cpu()]
        found = self.stored[at.to(self.stored.device)]
        return found if device is None else found.to(device)

    def rows_of(self, c: int) -> Tensor:
        """Rows of class `c`, int64 on the CPU, ascending; empty for a class without images.

        Raises: StillroomError if c is negative.
        """
        if c < 0:
            raise StillroomError(f"class {c} must not be negative")
        return self._by_class[c] if c < len(self._by_class) else torch.empty(0, dtype=torch.int64)

    @cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        order = self.labels.argsort(stable=True)
        ends = torch.bincount(self.labels).cumsum(0).tolist()
        return tuple(order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True))

    def subset(self, rows: Tensor) -> ImageSource:
        """Return a source of `rows` int64 [B] (CPU) in their order.

        The images are copied if they fit in memory, else pointed at.
        """
        labels = self.labels[rows]
        image_bytes = self.nbytes // max(1, len(self))
        if fits(len(rows) * image_bytes, self.stored.device):
            return ImageSource(self.take(rows), labels)
        return ImageSource(self.stored, labels, rows if self.index is None else self.index[rows])

    def on(self, device: torch.device) -> ImageSource:
        """Return a source whose images live on `device` if they fit there, else this one.

        They fit if they take up at most a quarter of the device's (or, for the CPU, the machine's)
        total memory: a fixed rule, so that nothing depends on what else runs.
        """
        if self.stored.device == device or not fits(self.nbytes, device):
            return self
        return ImageSource(self.images.to(device), self.labels)


def row_blocks(n: int, size: int = 4096) -> Iterator[Tensor]:
    """Rows 0..n-1 as consecutive int64 tensors of at most `size`."""
    for first in range(0, n, size):
        yield torch.arange(first, min(first + size, n))


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether data of this size may be held in the memory of `device`."""
    return nbytes <= total_memory(device) // SHARE


def total_memory(device: torch.device) -> int:
    """Bytes of memory that a device has in all, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # pragma: no cover - no sysconf on Windows
        return 16 * 2**30


def open_source(images: Path, labels: Path, shape: tuple[int, int, int]) -> ImageSource:
    """Open raw files of uint8 [N,ch,H,W] and int64 [N]: read if they fit in memory, else mapped."""
    found = torch.from_numpy(np.fromfile(labels, dtype="<i8").astype(np.int64, copy=False))
    if fits(images.stat().st_size, torch.device("cpu")):
        pixels = torch.from_numpy(np.fromfile(images, dtype=np.uint8))
    else:
        # Read-only on purpose: a private writable map of 190 GB would be refused by the kernel.
        mapped = np.memmap(images, dtype=np.uint8, mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
            pixels = torch.from_numpy(mapped)
    return ImageSource(pixels.view(len(found), *shape), found)
