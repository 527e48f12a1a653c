"""How many images the subsets have, and how complex they are: the numbers of two diagrams."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.comp_dd.build import read_built
from stillroom.comp_dd.categories import MAX_TABLE
from stillroom.comp_dd.complexity import WORTH_SAYING
from stillroom.comp_dd.subsets import CATEGORIES, SIDES
from stillroom.data.imagenet import wnids
from stillroom.data.named import find_local
from stillroom.errors import StillroomError
from stillroom.files import read_limited
from stillroom.report.subsets import Look, Pair, page
from stillroom.tables import percent

# Per cent, easy and hard: Wang et al. 2025, arXiv:2410.17193, its figure of the benchmark.
REPORTED = {
    "bird": (66.0, 74.5), "dog": (64.8, 70.8), "car": (57.4, 64.4), "fish": (60.4, 66.4),
    "insect": (67.9, 73.0), "snake": (64.3, 70.8), "round": (64.6, 69.3), "music": (64.1, 68.7),
}  # fmt: skip


@dataclass(frozen=True)
class Stats:
    """Categories, and what is to be said of them."""

    title: str
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def page(
        self,
        subtitle: str = "Training images and complexity",
        looks: Sequence[tuple[Look, Look]] = (),
    ) -> str:
        """The two diagrams as a page, and examples of easy and hard subsets."""
        told = ". ".join(note[0].upper() + note[1:].rstrip(".") for note in self.notes) + "."
        return page(self.title, subtitle, self.pairs, looks, told)


def told(pair: Pair) -> list[str]:
    """Complexity of the easy and of the hard subset, and their difference, in words."""
    if pair.complexity is None:
        return ["-"] * 3
    easy, hard = pair.complexity
    spread = "" if pair.half is None else f" ± {percent(math.hypot(*pair.half))}"
    return [percent(easy), percent(hard), percent(hard - easy, sign=True) + spread]


def of_built(folder: Path) -> Stats:
    """Those of a build, complexities on the half of the images that did not choose."""
    built = read_built(folder)
    pairs = []
    for easy, hard in built.pairs():
        pairs.append(
            Pair(
                easy.category,
                (easy.images, hard.images),
                (easy.held_out, hard.held_out),
                (easy.half, hard.half),
            )
        )
    note = (
        f"Complexity as {built.network} sees it ({built.measured}), on the half of the images that "
        "did not choose the classes; intervals of 95 % are over images of these classes."
    )
    notes = [note]
    if built.empty > WORTH_SAYING:
        notes.append(
            f"No pixel is active in {built.empty:.0%} of the images, which count as 100 % complex: "
            "ask a network that takes the mean of its last map"
        )
    return Stats(f"Subsets of {built.data}", tuple(pairs), tuple(notes))


def of_comp_dd(root: Path, table: Path | None) -> Stats:
    """Those of Comp-DD, counted in an ImageNet, whose images are not read.

    Complexities of classes are out of a table of `comp-dd complexity`, else those of the paper.
    Raises: StillroomError if no category is there whole, or the table lacks a class.
    """
    measured = None if table is None else read_complexity(table)
    pairs, absent, unknown = [], [], []
    for category in CATEGORIES:
        names = [f"comp-dd/{category}-{side}" for side in SIDES]
        try:
            counts = [_training_images(name, root) for name in names]
        except StillroomError as error:
            absent.append(category)
            why = error
            continue
        known = REPORTED[category]
        complexity: tuple[float, float] | None = (known[0] / 100, known[1] / 100)
        if measured is not None:
            complexity = _means(measured, names)
            unknown += [] if complexity else [category]
        pairs.append(Pair(category, (counts[0], counts[1]), complexity, reported=measured is None))
    if not pairs:
        raise StillroomError(f"no category of Comp-DD is there whole: {why}")
    if len(unknown) == len(pairs):
        raise StillroomError(f"{table}: has all classes of no category that is there")
    notes = [f"not there whole: {', '.join(absent)}"] if absent else []
    notes += [f"the table lacks classes of {', '.join(unknown)}"] if unknown else []
    notes.append(
        "images: counted in the data"
        if measured
        else "images: counted in the data; complexity: as the paper reports it"
    )
    if "music" not in absent:
        notes.append("music, hard has nine classes, as its published list names one twice")
    return Stats("Comp-DD", tuple(pairs), tuple(notes))


def read_complexity(path: Path) -> dict[str, float]:
    """Complexity by class, out of the first column of numbers of `comp-dd complexity --out`.

    Raises: StillroomError if that is not what the file is.
    """
    data = read_limited(path, MAX_TABLE, "which is no table of classes; not read")
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        rows = [row for row in csv.reader(text) if row]
        if rows[0][0] != "class" or not rows[0][1].startswith("complexity"):
            raise ValueError
        found = {row[0]: float(row[1]) for row in rows[1:]}
    except (ValueError, IndexError, csv.Error):
        raise StillroomError(
            f"{path}: is no table of classes; write one with: stillroom comp-dd complexity --out"
        ) from None
    odd = [name for name, value in found.items() if not 0 <= value <= 1]
    if odd:
        raise StillroomError(f"{path}: complexity of {odd[0][:80]!r} is no share from 0 to 1")
    return found


def _training_images(name: str, root: Path) -> int:
    return int(np.count_nonzero(find_local(name, root).splits["train"].labels >= 0))


def _means(measured: dict[str, float], names: list[str]) -> tuple[float, float] | None:
    """Of the easy and of the hard subset, the mean over its classes; None where one lacks."""
    if not {wnid for name in names for wnid in wnids(name)} <= measured.keys():
        return None
    easy, hard = (sum(measured[w] for w in wnids(name)) / len(wnids(name)) for name in names)
    return easy, hard
