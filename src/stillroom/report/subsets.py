"""The page of easy and hard subsets: how many images, how complex, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.report import figures, pictures
from stillroom.report.grids import Cell, Column, Grid, Row
from stillroom.report.page import figure, filled
from stillroom.tables import percent


@dataclass(frozen=True)
class Pair:
    """One category: (easy, hard) of training images and of complexity, a share, with its interval.

    `half` is half of a 95 % interval, None where it is unknown; `reported`: a paper's number.
    """

    category: str
    images: tuple[int, int]
    complexity: tuple[float, float] | None
    half: tuple[float, float] | None = None
    reported: bool = False


@dataclass(frozen=True)
class Look:
    """Real images uint8 [P,ch,H,W] of some classes, where a network sees them and how complex.

    maps [P,H,W] in [0, 1]; complexity [P], as it was measured.
    """

    heading: str
    names: tuple[str, ...]
    images: Tensor
    maps: Tensor
    complexity: Tensor

    def sprites(self) -> list[tuple[pictures.Sprite, str]]:
        """An image over itself, darkened where it is not seen; the share that is not active."""
        light = 0.15 + 0.85 * self.maps.double().cpu()
        below = (self.images * light.unsqueeze(1)).round().to(torch.uint8)
        made = pictures.over(self.names, self.images, below)
        return list(zip(made, [f"{float(s):.0%}" for s in self.complexity], strict=True))


def page(
    title: str, subtitle: str, pairs: Sequence[Pair], looks: Sequence[tuple[Look, Look]], note: str
) -> str:
    """HTML: two diagrams, their numbers, and examples, hard beside easy."""
    counts = [(p.category, float(p.images[0]), float(p.images[1])) for p in pairs]
    charts = [
        figure(
            "Training images",
            figures.bar_chart(counts, "{:,.0f}", "images"),
            "Of every category: the upper bar is the easy subset, the lower the hard one.",
        )
    ]
    known = [
        (p.category, 100 * p.complexity[0], 100 * p.complexity[1]) for p in pairs if p.complexity
    ]
    if known:
        charts.append(
            figure(
                "Complexity, as reported" if all(p.reported for p in pairs) else "Complexity",
                figures.bar_chart(known, "{:.1f} %", "complexity"),
                "The share of an image that a network does not look at to see its class, averaged "
                "over images and classes: easy above, hard below.",
            )
        )
    seen = [(easy.heading, easy.sprites(), hard.heading, hard.sprites()) for easy, hard in looks]
    return filled(
        "subsets.html.jinja",
        title=title,
        subtitle=subtitle,
        charts=charts,
        table=_grid(pairs),
        looks=seen,
        note=note,
    )


def _grid(pairs: Sequence[Pair]) -> Grid:
    heads = (
        *("category", "images, easy", "images, hard"),
        *("complexity, easy (%)", "complexity, hard (%)", "hard minus easy (points)"),
    )
    columns = tuple(Column(head, "number" if i else "text") for i, head in enumerate(heads))
    rows = []
    for p in pairs:
        cells = [Cell(p.category, p.category), *(Cell(f"{n:,}", str(n)) for n in p.images)]
        if p.complexity is None:
            cells += [Cell("-", "")] * 3
        else:
            easy, hard = p.complexity
            told = " (reported)" if p.reported else ""
            cells += [Cell(percent(v) + told, f"{v:.9g}") for v in (easy, hard)]
            spread = (
                "" if p.half is None else f" ± {percent((p.half[0] ** 2 + p.half[1] ** 2) ** 0.5)}"
            )
            cells.append(Cell(percent(hard - easy, sign=True) + spread, f"{hard - easy:.9g}"))
        rows.append(Row("", tuple(cells)))
    return Grid("Every category", columns, tuple(rows), sortable=True)
