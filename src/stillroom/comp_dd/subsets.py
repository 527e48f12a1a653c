"""The sixteen subsets, and the loader that the benchmark's page documents."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stillroom.artefacts.store import default_store
from stillroom.data.benchmarks import Benchmark, DataSpec, from_arrays, load_benchmark
from stillroom.data.imagenet import SUBSETS
from stillroom.data.source import ImageSource
from stillroom.errors import suggest
from stillroom.types import Preprocess

CATEGORIES = ("bird", "dog", "car", "fish", "insect", "snake", "round", "music")
SIDES: tuple[Literal["easy", "hard"], ...] = ("easy", "hard")
# As released, in the order of labels: banjo, 420, is there twice, so label 0 has no image.
REPEATED = {"comp-dd/music-hard": (420, 594, 420, *SUBSETS["comp-dd/music-hard"][2:])}

NINE = "music, hard has 9 distinct classes: its published list names banjo twice"
NO_IMAGE = "number 0, which no image has"  # banjo goes by its second number there


@dataclass(frozen=True)
class Subset:
    """One side of a subset: item i is (image float32 [3,H,W], normalised; label).

    Images lie in memory as 8 bits and are normalised one by one. `batches()` gives them `batch`
    at a time, in order.
    """

    source: ImageSource
    preprocess: Preprocess
    labels: tuple[int, ...]
    batch: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        row = torch.tensor([i % len(self)])
        return self.preprocess.apply(self.source.take(row))[0], self.labels[i]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [B,3,H,W] and labels int64 [B], `batch` at a time."""
        labels = torch.tensor(self.labels)
        for rows in torch.arange(len(self)).split(self.batch):
            yield self.preprocess.apply(self.source.take(rows)), labels[rows]


def subset_name(category: str, subset: str) -> str:
    """The data set's name here, such as "comp-dd/bird-easy", of singular and plural names.

    Raises: ValueError for other names.
    """
    one = category.lower().removesuffix("s")
    if one not in CATEGORIES:
        near = suggest(one, CATEGORIES)
        raise ValueError(f"category={category!r} is none of {', '.join(CATEGORIES)}{near}")
    if (side := subset.lower()) not in SIDES:
        raise ValueError(f"subset={subset!r} is none of {', '.join(SIDES)}")
    return f"comp-dd/{one}-{side}"


def as_released(bench: Benchmark, name: str, store: Path) -> Benchmark:
    """A subset by the labels of its published list: of music, hard ten, of which 0 has no image."""
    if name not in REPEATED:
        return bench
    number = {index: local for local, index in enumerate(REPEATED[name])}
    local = torch.tensor([number[index] for index in SUBSETS[name]])
    called = dict(zip(local.tolist(), bench.classes, strict=True))
    splits = [
        (s.take(torch.arange(len(s))).cpu(), local[s.labels.cpu()])
        for s in (bench.train, bench.test)
    ]
    return from_arrays(
        *splits[0],
        *splits[1],
        classes=[called.get(i, NO_IMAGE) for i in range(len(REPEATED[name]))],
        name=bench.name,
        normalise=bench.preprocess.name,
        store=store,
        empty=(NO_IMAGE,),
    )


def load_comp_dd(
    data_path: str | Path,
    category: str,
    subset: str,
    im_size: tuple[int, int] = (128, 128),
    batch_size: int = 256,
    *,
    strict_reference: bool = False,
    store: str | Path | None = None,
) -> tuple[int, tuple[int, int], int, Subset, Subset, dict[int, int], dict[int, int]]:
    """Return channel, im_size, num_classes, dst_train, dst_test, class_map, class_map_inv.

    data_path: an ImageNet-1K, or the part of it that the subset needs: folders `train/<wnid>` and
    `val/<wnid>`. category: one of `CATEGORIES`, singular or plural; subset: "easy" or "hard".
    batch_size: of `dst_train.batches()`. class_map: from ImageNet's class numbers to those of the
    subset, class_map_inv back. `music`, `hard` has nine classes, as its published list names one
    twice; with `strict_reference` ten, as there, of which number 0 has no image.
    store: where decoded images are kept; by default as for the command.
    Raises: ValueError for other names or an im_size that is no square; StillroomError if the data
    lack a class.
    """
    name = subset_name(category, subset)
    if not isinstance(im_size, tuple | list) or len(im_size) != 2 or im_size[0] != im_size[1]:
        raise ValueError(f"im_size={im_size!r} is no square")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} is no positive number")
    where = Path(store) if store is not None else default_store()
    where.mkdir(parents=True, exist_ok=True)
    spec = DataSpec(data=name, data_root=Path(data_path), size=im_size[0])
    bench = load_benchmark(spec, where)
    listed = SUBSETS[name]
    if name in REPEATED:
        if strict_reference:
            listed = REPEATED[name]
        warnings.warn(NINE, stacklevel=2)
    class_map = {index: local for local, index in enumerate(listed)}
    local = [class_map[index] for index in SUBSETS[name]]

    def side(source: ImageSource) -> Subset:
        labels = tuple(local[c] for c in source.labels.tolist())
        return Subset(source, bench.preprocess, labels, batch_size)

    back = dict(enumerate(listed))
    return 3, im_size, len(listed), side(bench.train), side(bench.test), class_map, back
