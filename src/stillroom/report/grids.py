"""Lines -> tables of the page: columns, cells with the value they sort by, and marks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.report.exhibits import Exhibit
from stillroom.report.gather import RULES, Shown, distillations
from stillroom.report.sentences import counted, ends, signed, taken
from stillroom.tables import Line, percent, size
from stillroom.types import Record

MAX_CLASSES = 50  # of which all are shown
COMMONEST = 20
Kind = Literal["own", "draws", "base", ""]

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
    "augmentation",
)


@dataclass(frozen=True)
class Column:
    """A heading; `kind` decides how its cells are compared and aligned.

    `parts` are headings of the single fields of its cells, where a cell holds several.
    """

    name: str
    kind: Literal["text", "number"]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """What is shown, and what is compared when the table is sorted (empty: always last).

    `heat` in 0..1 colours the cell, in another colour if it is `wrong`; `dots` are marks on a
    scale of 0..1, drawn beside the text. `parts`: see `Column`.
    """

    text: str
    value: str
    parts: tuple[str, ...] = ()
    apart: bool = False
    heat: float | None = None
    wrong: bool = False
    dots: tuple[tuple[Kind, float], ...] = ()


@dataclass(frozen=True)
class Row:
    """One row; `kind` is its colour in table and chart; `main` marks what the headline quotes."""

    kind: Kind
    cells: tuple[Cell, ...]
    main: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; `sorted_by` is the index of the column that it is sorted by, falling, if any."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sorted_by: int | None = None
    sortable: bool = True

    @property
    def marked(self) -> bool:
        """Whether a cell carries the mark of separate intervals."""
        return any(cell.apart for row in self.rows for cell in row.cells)

    @property
    def coloured(self) -> bool:
        """Whether cells have a heat, so that the table is as narrow as they are."""
        return any(cell.heat is not None for row in self.rows for cell in row.cells)


def _columns(*texts: str, numbers: Sequence[str], more: Sequence[str] = ()) -> tuple[Column, ...]:
    """Headings of text, then of numbers, then of text again."""
    tail = [Column(name, "text") for name in more]
    numeric = [Column(name, "number", _PARTS.get(name, ())) for name in numbers]
    return (*(Column(name, "text") for name in texts), *numeric, *tail)


_RESULT = ("accuracy %", "95 % interval", "vs random", "n", "std")
_COST = ("size", "s / student")
_PARTS = {
    "95 % interval": ("95 % low", "95 % high"),
    "vs random": ("vs random", "intervals apart"),
    "n": ("n", "of"),
    "n of random": ("n of random", "of"),
    "size": ("bytes",),
}
_DASH = Cell("–", "")


def kind(shown: Shown, line: Line) -> Kind:
    """The role of a line beside its set."""
    return "own" if shown.own(line) else "draws" if line.drawn else "base"


def accuracy_grid(shown: Shown, every: bool = False) -> Grid:
    """All rows of one set's records.

    What they were measured under is a column if it differs, or with `every` in any case.
    """
    table = shown.lines
    differ = list(range(len(_CONDITIONS))) if every else _differing(table)
    columns = _columns("row", numbers=_RESULT, more=["student"])
    columns += _columns(numbers=_COST, more=[_CONDITIONS[i] for i in differ])
    rows = []
    for line in table:
        cells = [_text(line.row), *_result(line), _text(line.arch), *_cost(line)]
        cells += [_text(str(line.conditions[i + 1])) for i in differ]
        rows.append(Row(kind(shown, line), tuple(cells), line is shown.main))
    means = [line.summary.mean for line in table]
    falling = all(a >= b for a, b in itertools.pairwise(means))
    return Grid(_caption(table, differ), columns, tuple(rows), 1 if falling else None)


def comparison_grid(sets: Sequence[Shown], every: bool = False) -> Grid:
    """The headline line of every set, side by side; a set without records has dashes.

    What they were measured under is a column if it differs, or with `every` in any case.
    """
    mains = [s.main for s in sets if s.main]
    some = range(len(_CONDITIONS)) if every else _differing(mains)
    differ = [i for i in some if _CONDITIONS[i] not in ("protocol", "data", "images a class")]
    numbers = (*_RESULT[:-1], "images", *_COST)
    more = ("data", "student", *(_CONDITIONS[i] for i in differ))
    columns = _columns("set", "protocol", numbers=numbers, more=more)

    def under(line: Line) -> list[Cell]:
        return [_text(str(line.conditions[i + 1])) for i in differ]

    rows = []
    for whole in distillations(sets):
        judged = (_text(whole.conditions.benchmark), _text(whole.arch), *under(whole))
        head = (_text(f"{whole.row}, all distillations"), _text(whole.protocol))
        rows.append(Row("base", (*head, *_result(whole)[:-1], _DASH, *_cost(whole), *judged)))
    for shown in sets:
        line, n = shown.main, len(shown.data)
        name, images = _text(shown.name), Cell(str(n), str(n))
        if line is None:
            known = shown.data.data.get("name")
            data = _text(known[:80] if isinstance(known, str) else "")
            cells = (*[_DASH] * 5, images, _size(shown.bytes), _DASH, data, _DASH)
            cells += (_DASH,) * len(differ)
        else:
            judged = (_text(line.conditions.benchmark), _text(line.arch), *under(line))
            cells = (_text(line.protocol), *_result(line)[:-1], images, *_cost(line), *judged)
        rows.append(Row("own", (name, *cells)))
    rows.sort(key=lambda row: float(row.cells[2].value or -1), reverse=True)
    caption = "The last step of every set, on its own network where that was measured"
    if different := differing(mains):
        caption += f"; not judged alike: {', '.join(different)} differ"
    return Grid(caption, columns, tuple(rows), 2)


def tables(sets: Sequence[Shown], every: bool = False) -> dict[str, Grid]:
    """The tables of a page by name, those that it has; of many sets the comparing ones.

    `every`: see `accuracy_grid`.
    """
    if len(sets) > 1:
        some = {"accuracy": comparison_grid(sets, every), "networks": compared_networks(sets)}
        return {name: grid for name, grid in some.items() if grid is not None}
    (shown,) = sets
    own, names = shown.exhibit(shown.main), shown.data.classes
    found: dict[str, Grid | None] = {
        "accuracy": accuracy_grid(shown, every),
        "networks": networks_of(shown),
        "reported": reported_grid(shown),
        "selection": selection_grid(shown),
        "others": others_grid(shown),
    }
    if own is not None and shown.main is not None:
        random = shown.exhibit(shown.random)
        found["classes"] = class_grid(names, shown.main.row, own, random)
        found["confusion"] = confusion_grid(names, own)
    return {name: grid for name, grid in found.items() if grid is not None}


def networks_of(shown: Shown) -> Grid | None:
    """The rows of one set's records on every network."""
    roles = {x.row: kind(shown, x) for x in shown.lines}
    return network_grid([(row, roles[row], by) for row, by in shown.networks().items()])


def compared_networks(sets: Sequence[Shown]) -> Grid | None:
    """The headline rows of several sets on every network."""
    own: Kind = "own"
    return network_grid([(s.name, own, s.networks()[s.main.row]) for s in sets if s.main])


def class_grid(classes: Sequence[str], name: str, own: Exhibit, random: Exhibit | None) -> Grid:
    """Accuracy class by class, beside that of random images; of many classes the worst."""
    worst = sorted(range(len(classes)), key=lambda c: own.per_class[c])[:COMMONEST]
    few = len(classes) <= MAX_CLASSES
    both: list[tuple[Kind, str, Exhibit]] = [("own", name, own)]
    both += [("draws", "random", random)] if random else []
    rows = []
    for c in range(len(classes)) if few else worst:
        dots = tuple((kind, e.per_class[c]) for kind, _, e in reversed(both))
        drawn = Cell("", f"{own.per_class[c]:.9g}", dots=dots)
        rows.append(
            Row("", (_text(classes[c]), drawn, *(_number(e.per_class[c]) for *_, e in both)))
        )
    of = ", ".join(f"{len(e.students)} of {row}" for _, row, e in both)
    which = "Accuracy of each class" if few else f"The {COMMONEST} worst of {len(classes)} classes"
    columns = _columns("class", "0 to 100 %", numbers=[f"{row} %" for _, row, _ in both])
    told = "; dots: the set green" + (", random images orange" if random else "")
    return Grid(f"{which}; students: {of}{told}", columns, tuple(rows))


def confusion_grid(classes: Sequence[str], own: Exhibit) -> Grid | None:
    """What each class was taken for: a coloured square, or the commonest errors of many classes."""
    shares = own.shares()
    errors = sorted(taken(shares), reverse=True)
    if not errors:
        return None
    if len(classes) > MAX_CLASSES:
        some = [
            (_text(classes[a]), _text(classes[b]), _number(v)) for v, a, b in errors[:COMMONEST]
        ]
        heads = _columns("class", "taken for", numbers=["share of the class %"])
        return Grid("The commonest errors", heads, tuple(Row("", cells) for cells in some), 2)
    rows = []
    for a, row in enumerate(shares):
        cells = []
        for b, share in enumerate(row):
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1" if share else ""
            heat = share if a == b else share / errors[0][0]
            cells.append(Cell(text, f"{share:.9g}", heat=heat, wrong=a != b))
        rows.append(Row("", (_text(classes[a]), *cells)))
    caption = "Of the test images of a class (row), the percentage taken for each class (column)"
    return Grid(caption, _columns("class", numbers=classes), tuple(rows), sortable=False)


def network_grid(rows: Sequence[tuple[str, Kind, Mapping[str, Line]]]) -> Grid | None:
    """Mean accuracy of rows on networks, coloured; nothing where there is one network only."""
    rows = rows[:MAX_CLASSES]
    archs = sorted({arch for _, _, by in rows for arch in by})[:MAX_CLASSES]
    means = [line.summary.mean for _, _, by in rows for line in by.values()]
    if len(archs) < 2:
        return None

    def cell(line: Line | None) -> Cell:
        if line is None:
            return _DASH
        above = (line.summary.mean - min(means)) / max(max(means) - min(means), 1e-9)
        return _number(line.summary.mean, heat=0.1 + 0.9 * above)

    shown = [Row(kind, (_text(name), *(cell(by.get(a)) for a in archs))) for name, kind, by in rows]
    caption = "Mean accuracy (%) of students of each network"
    return Grid(caption, _columns("row", numbers=archs), tuple(shown))


def selection_grid(shown: Shown) -> Grid | None:
    """The headline and random under every selection rule that was kept; None if one was."""
    main, names = shown.main, {"best": "best on test images", "val": "best on validation images"}
    rows = []
    for rule in RULES:
        own, random = shown.under(rule)
        if main and own:
            cells = [_number(own.summary.mean), _counted(own), _result(own)[2], _DASH, _DASH]
            if random:
                cells[3:] = _number(random.summary.mean), _counted(random)
            name = _text(names.get(rule, "the last"))
            rows.append(Row("", (name, *cells), rule == main.conditions.selection))
    if main is None or len(rows) < 2:
        return None
    numbers = (f"{main.row} %", "n", "vs random", "random %", "n of random")
    caption = "Accuracy by the rule that chooses an epoch"
    return Grid(caption, _columns("epoch", numbers=numbers), tuple(rows))


def reported_grid(shown: Shown) -> Grid | None:
    """Numbers of papers, with the row of the same method here and how it stands to them."""
    rows = []
    for r in sorted(shown.reported, key=lambda r: -r.value):
        line, standing = shown.here(r)
        here = _number(line.summary.mean) if line else _DASH
        own = f"{line.row}: {standing}" if line else ""
        texts = map(_text, (own, r.arch, r.protocol, r.note))
        rows.append(Row("", (_text(r.row), _number(r.value), _deviation(r), here, *texts)))
    numbers = ("paper %", "± std", "here %")
    more = ("what is here", "student", "protocol", "source")
    columns = _columns("method", numbers=numbers, more=more)
    return Grid("A paper’s number, not measured here", columns, tuple(rows), 1) if rows else None


def others_grid(shown: Shown) -> Grid | None:
    """Measurements other than accuracies, at most 200."""
    rules = ("accuracy", *(f"accuracy.{rule}" for rule in RULES))
    rows = []
    for r in shown.records:
        if r.metric not in rules:
            value = Cell(f"{r.value:.6g} {r.unit}".strip(), f"{r.value:.9g}")
            rows.append(Row("", (*map(_text, (r.metric, r.row, r.arch)), value)))
    columns = _columns("metric", "row", "student", numbers=["value"])
    caption = "Measurements other than accuracy"
    return Grid(caption, columns, tuple(rows[:200])) if rows else None


def _deviation(r: Record) -> Cell:
    try:
        std = float(r.versions.get("std", ""))
    except ValueError:
        return _DASH
    return Cell(percent(std), f"{std:.9g}") if 0 <= std <= 1 else _DASH


def _counted(line: Line) -> Cell:
    return Cell(counted(line), str(line.summary.n), (str(line.summary.n), line.counts))


def _number(value: float, heat: float | None = None) -> Cell:
    return Cell(percent(value), f"{value:.9g}", heat=heat)


def _result(line: Line) -> list[Cell]:
    s = line.summary
    gap = _DASH
    if line.gap is not None:
        apart = bool(line.separate)
        parts = (percent(line.gap, sign=True), "yes" if apart else "no")
        gap = Cell(signed(line.gap), f"{line.gap:.9g}", parts, apart)
    interval = _DASH
    if s.half is not None:
        low, high = percent(max(0.0, s.low)), percent(min(1.0, s.high))
        interval = Cell(ends(line), f"{s.low:.9g}", (low, high))
    return [
        Cell(percent(s.mean), f"{s.mean:.9g}"),
        interval,
        gap,
        _counted(line),
        Cell(percent(s.std), f"{s.std:.9g}") if s.n > 1 else _DASH,
    ]


def _cost(line: Line) -> list[Cell]:
    return [_size(line.bytes), Cell(f"{line.seconds:.1f}", f"{line.seconds:.9g}")]


def _text(text: str) -> Cell:
    return Cell(text or "–", text)


def _size(count: int) -> Cell:
    return Cell(size(count), str(count), (str(count),))


def differing(table: Sequence[Line]) -> list[str]:
    """In what rows were not judged alike, but for the number of images."""
    network = ["network"] if len({line.arch for line in table}) > 1 else []
    some = [_CONDITIONS[i] for i in _differing(table)]
    return network + [name for name in some if name not in ("hash", "images a class")]


def _differing(table: Sequence[Line]) -> list[int]:
    return [i for i in range(len(_CONDITIONS)) if len({x.conditions[i + 1] for x in table}) > 1]


def _caption(table: Sequence[Line], differ: Sequence[int]) -> str:
    """What all rows have in common."""
    if not table:
        return "Accuracy"
    first = table[0].conditions
    known = {name: str(first[i + 1]) for i, name in enumerate(_CONDITIONS) if i not in differ}
    parts = ["Accuracy on test images" + (f" of {known['data']}" if "data" in known else "")]
    if "protocol" in known:
        parts.append(known["protocol"] + (f" ({known['hash']})" if "hash" in known else ""))
    return ", ".join([*parts, *(known[k] for k in ("numerics",) if k in known)])
