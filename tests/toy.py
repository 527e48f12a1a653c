"""Two easy classes and a record, for tests that need some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stillroom.session import Session
from stillroom.types import Record


class StopAt(Session):
    """Presses Ctrl-C at an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.at = epoch

    def update(self, done: int, **metrics: float) -> None:
        if done == self.at:
            self.stop.set()


def toy_images(n: int = 24, classes: int = 2, size: int = 8, channels: int = 3, seed: int = 0):
    """Learnable images: every class has a bright corner of its own, plus noise."""
    gen = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (n, channels, size, size), generator=gen)
    labels = torch.arange(n) % classes
    for i, c in enumerate(labels.tolist()):
        row, column = divmod(c, 2)
        images[i, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 120
    return images.to(torch.uint8), labels


def record(value: float, seed: int = 0, **fields: Any) -> Record:
    """One student."""
    usual = {
        "benchmark": "pets",
        "data_digest": "d",
        "ipc": 1,
        "row": "dm@30",
        "set_key": "k",
        "step": 30,
        "draw": None,
        "protocol": "quick@1",
        "protocol_hash": "abc",
        "arch": "convnet1",
        "seed": seed,
        "metric": "accuracy",
        "value": value,
        "unit": "fraction",
        "selection": "last",
        "source": "measured",
        "bytes": 2048,
        "seconds": 1.5,
        "device": "cpu",
        "numerics": "float32",
        "code": "c",
        "split": "given",
    }
    return Record(**{**usual, **fields})


class StopAfter(Session):
    """Presses Ctrl-C at the n-th update that it sees."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def update(self, done: int, **metrics: float) -> None:
        self.left -= 1
        if not self.left:
            self.stop.set()


FOLLOWED: dict[str, Any] = {  # the shortest trajectory matching
    "experts": 1,
    "schooling": {"epochs": 1, "batch": 8, "momentum": 0.0, "schedule": "constant"},
    "window": {"last": 1, "epochs": 1},
    "inner": 2,
}


def class_pictures(root: Path, classes: Sequence[str], counts: dict[str, int], side: int) -> None:
    """Folders `<split>/<class>` of pictures that differ, in a colour of each class."""
    for split, count in counts.items():
        for c, name in enumerate(classes):
            below = root / split / name
            below.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                gen = torch.Generator().manual_seed(997 * c + 13 * i + len(split))
                noise = torch.randint(0, 60, (side, side, 3), generator=gen)
                pixels = noise + torch.tensor([7 * c % 190, 31 * c % 190, 90])
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(below / f"{i}.png")
