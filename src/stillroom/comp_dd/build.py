"""Easy and hard subsets of any labelled data: in every category the classes of either end.

Wang et al. 2025, arXiv:2410.17193, section 3. Classes are chosen on one half of the images of each
class that were looked at, and the complexity of a subset is told on the other half: on the images
that chose it, the difference of two ends is partly their luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from stillroom.comp_dd.categories import MAX_TABLE, Categories, refuse_odd
from stillroom.comp_dd.complexity import empty, hard_first, mean_of_classes, of_classes
from stillroom.comp_dd.measure import Complexities
from stillroom.comp_dd.subsets import SIDES
from stillroom.config import Model
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.files import read_limited

SUBSETS = "subsets.json"


class Side(Model):
    """One subset. `half` is that of the 95 % interval of `held_out`, over images of these classes.

    Complexities are shares: the mean over classes of the mean over their images.
    """

    category: str
    side: Literal["easy", "hard"]
    classes: tuple[str, ...] = Field(min_length=1)
    images: int = Field(ge=0, lt=2**53)
    chosen_on: float = Field(ge=0, le=1)
    held_out: float = Field(ge=0, le=1)
    half: float = Field(ge=0)

    @property
    def name(self) -> str:
        """As its file is called."""
        return f"{self.category}-{self.side}"


class Built(Model):
    """Subsets of some data, and how complex a network found their classes, on all images seen.

    `names`: what some classes are called, for people, where the table of categories says it.
    `empty`: the share of images of whose map no pixel is active.
    """

    data: str
    digest: str
    network: str
    measured: str = Field(description="in which layer, by which map and so on, in words")
    complexity: dict[str, float]
    names: dict[str, str] = Field(default_factory=dict)
    empty: float = Field(default=0.0, ge=0, le=1)
    subsets: tuple[Side, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _two_sides_of_every_category(self) -> Built:
        categories = [side.category for side in self.subsets]
        if [s.side for s in self.subsets] != [*SIDES] * (len(categories) // 2):
            raise ValueError("subsets are easy, hard, easy, hard and so on")
        if categories[::2] != categories[1::2] or len({*categories}) * 2 != len(categories):
            raise ValueError("every category has an easy and a hard subset, one after the other")
        for name in categories:
            refuse_odd(name, "a category")
        return self

    def pairs(self) -> list[tuple[Side, Side]]:
        """The easy and the hard subset of every category."""
        return list(zip(self.subsets[::2], self.subsets[1::2], strict=True))


def refuse_broken_names(classes: Sequence[str]) -> None:
    """Raise StillroomError for a class whose name cannot be a line of a list."""
    odd = next((name for name in classes if "\n" in name or "\r" in name), None)
    if odd is not None:
        raise StillroomError(f"class {odd[:80]!r} has a line break in its name; rename it")


def first_half(labels: Tensor) -> Tensor:
    """bool [M]: of the images of each class, in their order, every other one."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        chosen[(labels == c).nonzero().flatten()[::2]] = True
    return chosen


def large_enough(categories: Mapping[str, Sequence[int]], size: int) -> Mapping[str, Sequence[int]]:
    """The categories with classes for two subsets.

    Raises: StillroomError if there is none.
    """
    large = {name: mine for name, mine in categories.items() if len(mine) >= 2 * size}
    if not large:
        most = max(categories, key=lambda name: len(categories[name]))
        raise StillroomError(
            f"--classes-each {size}: two subsets need {2 * size} classes of a category, and the "
            f"largest, {most}, has {len(categories[most])}"
        )
    return large


def build(
    values: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    counts: Sequence[int],
    categories: Mapping[str, Sequence[int]],
    size: int,
) -> list[Side]:
    """The `size` least and most complex classes of every category that has twice as many.

    values float64 [M]: complexity of images, labels int64 [M] their classes; counts: training
    images of every class.
    Raises: StillroomError if no category is large enough, or classes have fewer than four images.
    """
    large = large_enough(categories, size)
    seen = torch.bincount(labels, minlength=len(classes))
    wanted = [c for mine in large.values() for c in mine]
    if int(seen[wanted].min()) < 4:
        few = classes[min(wanted, key=lambda c: int(seen[c]))]
        raise StillroomError(f"class {few!r} has fewer than four images, two for either half")
    half = first_half(labels)
    means = of_classes(values[half], labels[half], len(classes))
    found = []
    for category, mine in large.items():
        order = [mine[i] for i in hard_first(means[list(mine)])]
        for side, some in zip(SIDES, (order[::-1][:size], order[:size]), strict=True):
            held, error = mean_of_classes(values[~half], labels[~half], some)
            found.append(
                Side(
                    category=category,
                    side=side,
                    classes=tuple(classes[c] for c in some),
                    images=sum(counts[c] for c in some),
                    chosen_on=float(means[some].mean()),
                    held_out=held,
                    half=error,
                )
            )
    return found


def built(
    bench: Benchmark,
    stage: Complexities,
    seen: Tensor,
    values: Tensor,
    categories: Categories,
    size: int,
) -> Built:
    """Subsets of data whose training images `seen` int64 [M] have complexities `values` [M]."""
    labels = bench.train.labels[seen].cpu()
    counts = torch.bincount(bench.train.labels.cpu(), minlength=len(bench.classes)).tolist()
    means = of_classes(values, labels, len(bench.classes)).tolist()
    return Built(
        data=bench.name,
        digest=bench.digest,
        network=stage.model.name,
        measured=stage.in_words(),
        complexity=dict(zip(bench.classes, means, strict=True)),
        names=categories.names,
        empty=empty(values),
        subsets=tuple(build(values, labels, bench.classes, counts, categories.classes, size)),
    )


def read_built(folder: Path) -> Built:
    """What `write` has written.

    Raises: StillroomError if it is not there or damaged.
    """
    path = folder / SUBSETS
    try:
        return Built.model_validate_json(read_limited(path, MAX_TABLE * 16, "not read"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or "it"
        raise StillroomError(f"{path}: {where}: {first['msg']}; build the subsets again") from None


def gap(easy: Side, hard: Side) -> tuple[float, float]:
    """How much more complex the hard side is on held-out images, and half of its 95 % interval."""
    return hard.held_out - easy.held_out, float((easy.half**2 + hard.half**2) ** 0.5)
