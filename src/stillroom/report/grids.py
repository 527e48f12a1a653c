"""Lines -> tables of the page: columns, cells with the value they sort by, and marks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.report.gather import Shown
from stillroom.report.sentences import counted, signed
from stillroom.tables import Line, percent, size

# The parts of `Line.conditions` after the architecture, as columns where they differ.
_CONDITIONS = (
    "protocol",
    "hash",
    "numerics",
    "data",
    "data digest",
    "test split",
    "selection",
    "source",
    "images a class",
)


@dataclass(frozen=True)
class Column:
    """A heading; `kind` decides how its cells are compared and aligned."""

    name: str
    kind: Literal["text", "number"]


@dataclass(frozen=True)
class Cell:
    """What is shown, and what is compared when the table is sorted (empty: always last)."""

    text: str
    value: str
    apart: bool = False


@dataclass(frozen=True)
class Row:
    """One row; `kind` is its colour in table and chart; `main` marks what the headline quotes."""

    kind: Literal["own", "draws", "base"]
    cells: tuple[Cell, ...]
    main: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; `sorted_by` is the index of the column that it is sorted by, falling."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sorted_by: int | None

    @property
    def marked(self) -> bool:
        """Whether a cell carries the mark of separate intervals."""
        return any(cell.apart for row in self.rows for cell in row.cells)


_RESULT = [
    Column(name, "number") for name in ("accuracy %", "95 % interval", "vs random", "n", "std")
]
_COST = [Column(name, "number") for name in ("size", "s / student")]
_DASH = Cell("–", "")


def kind(shown: Shown, line: Line) -> Literal["own", "draws", "base"]:
    """The role of a line beside its set."""
    return "own" if shown.own(line) else "draws" if line.drawn else "base"


def accuracy_grid(shown: Shown) -> Grid:
    """All rows of one set's records; what they were measured under is a column if it differs."""
    table = shown.lines
    differ = _differing(table)
    columns = [Column("row", "text"), *_RESULT, Column("student", "text"), *_COST]
    columns += [Column(_CONDITIONS[i], "text") for i in differ]
    rows = []
    for line in table:
        cells = [_text(line.row), *_result(line), _text(line.arch), *_cost(line)]
        cells += [_text(str(line.conditions[i + 1])) for i in differ]
        rows.append(Row(kind(shown, line), tuple(cells), line is shown.main))
    means = [line.summary.mean for line in table]
    falling = all(a >= b for a, b in itertools.pairwise(means))
    return Grid(_caption(table, differ), tuple(columns), tuple(rows), 1 if falling else None)


def comparison_grid(sets: Sequence[Shown]) -> Grid:
    """The headline line of every set, side by side; a set without records has dashes."""
    columns = (
        Column("set", "text"),
        *_RESULT[:-1],
        Column("images", "number"),
        *_COST,
        Column("data", "text"),
        Column("student", "text"),
        Column("protocol", "text"),
    )
    rows = []
    for shown in sorted(sets, key=lambda s: -s.main.summary.mean if s.main else 1):
        line, n = shown.main, len(shown.data)
        name, images = _text(shown.name), Cell(str(n), str(n))
        if line is None:
            known = shown.data.data.get("name")
            data = _text(known[:80] if isinstance(known, str) else "")
            cells = (*[_DASH] * 4, images, _size(shown.bytes), _DASH, data, _DASH, _DASH)
        else:
            judged = (_text(line.conditions.benchmark), _text(line.arch), _text(line.protocol))
            cells = (*_result(line)[:-1], images, *_cost(line), *judged)
        rows.append(Row("own", (name, *cells)))
    caption = "The last step of every set, on its own network where that was measured"
    return Grid(caption, columns, tuple(rows), 1)


def _result(line: Line) -> list[Cell]:
    s = line.summary
    known = s.half is not None
    interval = f"{percent(s.low)} to {percent(s.high)}"
    return [
        Cell(percent(s.mean), f"{s.mean:.9g}"),
        Cell(interval.replace("-", "−"), f"{s.low:.9g}") if known else _DASH,
        _DASH
        if line.gap is None
        else Cell(signed(line.gap), f"{line.gap:.9g}", bool(line.separate)),
        Cell(counted(line), str(s.n)),
        Cell(percent(s.std), f"{s.std:.9g}") if s.n > 1 else _DASH,
    ]


def _cost(line: Line) -> list[Cell]:
    return [_size(line.bytes), Cell(f"{line.seconds:.1f}", f"{line.seconds:.9g}")]


def _text(text: str) -> Cell:
    return Cell(text or "–", text)


def _size(count: int) -> Cell:
    return Cell(size(count), str(count))


def _differing(table: Sequence[Line]) -> list[int]:
    return [i for i in range(len(_CONDITIONS)) if len({x.conditions[i + 1] for x in table}) > 1]


def _caption(table: Sequence[Line], differ: Sequence[int]) -> str:
    """What all rows have in common."""
    if not table:
        return "Accuracy"
    first = table[0].conditions
    known = {name: str(first[i + 1]) for i, name in enumerate(_CONDITIONS) if i not in differ}
    parts = [
        f"Accuracy on test images of {known['data']}"
        if "data" in known
        else "Accuracy on test images"
    ]
    if "protocol" in known:
        parts.append(known["protocol"] + (f" ({known['hash']})" if "hash" in known else ""))
    return ", ".join([*parts, *(known[k] for k in ("numerics",) if k in known)])
