"""Lines -> tables of the page: columns, cells with the value they sort by, and marks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.evaluation.protocol import SELECTIONS
from stillroom.report.exhibits import Exhibit
from stillroom.report.gather import Shown
from stillroom.report.sentences import counted, ends, signed, taken
from stillroom.tables import Conditions, Line, percent, size
from stillroom.types import Record

MAX_CLASSES = 50  # of which all are shown
COMMONEST = 20
Kind = Literal["own", "draws", "base", ""]

# The parts of `Line.conditions` after the architecture, as columns where they differ.
CONDITIONS = (
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
    "labels of teachers",
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
    """One row; `kind` is its colour in table and chart; `main` marks what the headline quotes.

    `opens`: it is the first of a group that was not judged as the rows above it.
    """

    kind: Kind
    cells: tuple[Cell, ...]
    main: bool = False
    opens: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; `sorted_by` is the index of the column that it is sorted by, falling, if any.

    `legend` explains its drawings, which other forms of it do not have.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sorted_by: int | None = None
    sortable: bool = True
    legend: str = ""

    @property
    def marked(self) -> bool:
        """Whether a cell carries the mark of separate intervals."""
        return any(cell.apart for row in self.rows for cell in row.cells)

    @property
    def coloured(self) -> bool:
        """Whether cells have a heat, so that the table is as narrow as they are."""
        return any(cell.heat is not None for row in self.rows for cell in row.cells)


def columns_of(*texts: str, numbers: Sequence[str], more: Sequence[str] = ()) -> tuple[Column, ...]:
    """Headings of text, then of numbers, then of text again."""
    tail = [Column(name, "text") for name in more]
    numeric = [Column(name, "number", _PARTS.get(name, ())) for name in numbers]
    return (*(Column(name, "text") for name in texts), *numeric, *tail)


RESULT = ("accuracy %", "95 % interval", "vs random", "n", "std")
SEEN = 3  # of them before what they were measured under
_PARTS = {
    "95 % interval": ("95 % low", "95 % high"),
    "vs random": ("vs random", "intervals apart"),
    "n": ("n", "of"),
    "n of random": ("n of random", "of"),
    "size": ("bytes",),
    "+ labels": ("label bytes",),
    "+ teachers": ("teacher bytes",),
}
_MORE: dict[str, Callable[[Line], int]] = {
    "+ labels": lambda line: line.label_bytes,
    "+ teachers": lambda line: line.teacher_bytes,
}
DASH = Cell("–", "")


def under(line: Line, which: Sequence[int]) -> list[Cell]:
    """The chosen conditions of a line, as cells; full data have no number of images a class."""
    names = [str(line.conditions[i + 1]) for i in which]
    sized = zip(which, names, strict=True)
    return [
        text_cell("all" if CONDITIONS[i] == "images a class" and text == "0" else text)
        for i, text in sized
    ]


def kind(shown: Shown, line: Line) -> Kind:
    """The role of a line beside its set."""
    return "own" if shown.own(line) else "draws" if line.drawn else "base"


def accuracy_grid(shown: Shown, every: bool = False) -> Grid:
    """All rows of one set's records, those that were judged as the headline was first.

    What they were measured under is a column if it differs, or with `every` in any case.
    """
    # The headline's conditions first, and what is not judged alike apart.
    firsts = [shown.main] if shown.main else []
    groups: dict[Conditions, list[Line]] = {_judged(line): [] for line in firsts}
    for line in shown.lines:
        groups.setdefault(_judged(line), []).append(line)
    table = [line for group in groups.values() for line in group]
    differ = list(range(len(CONDITIONS))) if every else differing_in(table)
    student = ["student"] if every or len({line.arch for line in table}) > 1 else []
    # A phone shows the first columns, a desk the conditions too.
    columns = columns_of(
        "row", numbers=RESULT[:SEEN], more=[*student, *(CONDITIONS[i] for i in differ)]
    )
    cost = costs(table, every)
    columns += columns_of(numbers=(*RESULT[SEEN:], *cost))
    baselines = {x.row for x in table if not shown.own(x)}
    rows: list[Row] = []
    for line in table:
        same = shown.own(line) and line.row in baselines  # a random set beside random draws
        cells = [
            text_cell(f"{line.row} (this set)" if same else line.row),
            *result_cells(line)[:SEEN],
            *(text_cell(line.arch) for _ in student),
            *under(line, differ),
            *result_cells(line)[SEEN:],
            *cost_cells(line, cost),
        ]
        opens = bool(rows) and any(line is group[0] for group in groups.values())
        rows.append(Row(kind(shown, line), tuple(cells), line is shown.main, opens))
    means = [line.summary.mean for line in table]
    falling = all(a >= b for a, b in itertools.pairwise(means))
    caption = _caption(table, differ, bool(student))
    return Grid(caption, columns, tuple(rows), 1 if falling else None)


def _judged(line: Line) -> Conditions:
    """The conditions of a line but for the network and the number of images."""
    return line.conditions._replace(arch="", ipc=0)


def networks_of(shown: Shown) -> Grid | None:
    """The rows of one set's records on every network."""
    roles = {x.row: kind(shown, x) for x in shown.lines}
    return network_grid([(row, roles[row], by) for row, by in shown.networks().items()])


def class_grid(classes: Sequence[str], name: str, own: Exhibit, random: Exhibit | None) -> Grid:
    """Accuracy class by class, beside that of random images; of many classes the worst."""
    worst = sorted(range(len(classes)), key=lambda c: own.per_class[c])[:COMMONEST]
    few = len(classes) <= MAX_CLASSES
    name = f"{name} (this set)" if random and name == "random" else name
    both: list[tuple[Kind, str, Exhibit]] = [("own", name, own)]
    both += [("draws", "random", random)] if random else []
    rows = []
    for c in range(len(classes)) if few else worst:
        dots = tuple((kind, e.per_class[c]) for kind, _, e in reversed(both))
        drawn = Cell("", f"{own.per_class[c]:.9g}", dots=dots)
        rows.append(
            Row("", (text_cell(classes[c]), drawn, *(_number(e.per_class[c]) for *_, e in both)))
        )
    of = ", ".join(f"{len(e.students)} of {row}" for _, row, e in both)
    which = "Accuracy of each class" if few else f"The {COMMONEST} worst of {len(classes)} classes"
    columns = columns_of("class", "0 to 100 %", numbers=[f"{row} %" for _, row, _ in both])
    legend = "; dots: the set green" + (", random images orange" if random else "")
    return Grid(f"{which}; students: {of}", columns, tuple(rows), legend=legend)


def confusion_grid(classes: Sequence[str], own: Exhibit) -> Grid | None:
    """What each class was taken for: a coloured square, or the commonest errors of many classes."""
    shares = own.shares()
    errors = sorted(taken(shares), reverse=True)
    if not errors:
        return None
    if len(classes) > MAX_CLASSES:
        some = [
            (text_cell(classes[a]), text_cell(classes[b]), _number(v))
            for v, a, b in errors[:COMMONEST]
        ]
        heads = columns_of("class", "taken for", numbers=["share of the class %"])
        return Grid("The commonest errors", heads, tuple(Row("", cells) for cells in some), 2)
    rows = []
    for a, row in enumerate(shares):
        cells = []
        for b, share in enumerate(row):
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1" if share else ""
            heat = share if a == b else share / errors[0][0]
            cells.append(Cell(text, f"{share:.9g}", heat=heat, wrong=a != b))
        rows.append(Row("", (text_cell(classes[a]), *cells)))
    caption = "Of the test images of a class (row), the percentage taken for each class (column)"
    return Grid(caption, columns_of("class", numbers=classes), tuple(rows), sortable=False)


def network_grid(rows: Sequence[tuple[str, Kind, Mapping[str, Line]]]) -> Grid | None:
    """Mean accuracy of rows on networks, coloured; nothing where there is one network only."""
    rows = rows[:MAX_CLASSES]
    archs = sorted({arch for _, _, by in rows for arch in by})[:MAX_CLASSES]
    means = [line.summary.mean for _, _, by in rows for line in by.values()]
    if len(archs) < 2:
        return None

    def cell(line: Line | None) -> Cell:
        if line is None:
            return DASH
        above = (line.summary.mean - min(means)) / max(max(means) - min(means), 1e-9)
        return _number(line.summary.mean, heat=0.1 + 0.9 * above)

    shown = [
        Row(kind, (text_cell(name), *(cell(by.get(a)) for a in archs))) for name, kind, by in rows
    ]
    caption = "Mean accuracy (%) of students of each network"
    return Grid(caption, columns_of("row", numbers=archs), tuple(shown))


def selection_grid(shown: Shown) -> Grid | None:
    """The headline and random under every selection rule that was kept; None if one was."""
    main, names = shown.main, {"best": "best on test images", "val": "best on validation images"}
    rows = []
    for rule in SELECTIONS:
        own, random = shown.under(rule)
        if main and own:
            cells = [_number(own.summary.mean), _counted(own), result_cells(own)[2], DASH, DASH]
            if random:
                cells[3:] = _number(random.summary.mean), _counted(random)
            name = text_cell(names.get(rule, "the last"))
            rows.append(Row("", (name, *cells), rule == main.conditions.selection))
    if main is None or len(rows) < 2:
        return None
    numbers = (f"{main.row} %", "n", "vs random", "random %", "n of random")
    caption = "Accuracy by the rule that chooses an epoch"
    return Grid(caption, columns_of("epoch", numbers=numbers), tuple(rows))


def reported_grid(shown: Shown) -> Grid | None:
    """Numbers of papers, with the row of the same method here and how it stands to them."""
    rows = []
    for r in sorted(shown.reported, key=lambda r: -r.value):
        line, standing = shown.here(r)
        here = _number(line.summary.mean) if line else DASH
        own = f"{line.row}: {standing}" if line else ""
        texts = map(text_cell, (own, r.arch, r.protocol, r.note))
        rows.append(Row("", (text_cell(r.row), _number(r.value), _deviation(r), here, *texts)))
    numbers = ("paper %", "± std", "here %")
    more = ("what is here", "student", "protocol", "source")
    columns = columns_of("method", numbers=numbers, more=more)
    return Grid("A paper’s number, not measured here", columns, tuple(rows), 1) if rows else None


def others_grid(shown: Shown) -> Grid | None:
    """Measurements other than accuracies, at most 200; of what was asked twice the newest."""
    rules = ("accuracy", *(f"accuracy.{rule}" for rule in SELECTIONS))
    # A ledger keeps apart what other code, or another question beside it, measured alike.
    newest = {_question(r): r for r in shown.records if r.metric not in rules}
    rows = []
    for r in newest.values():
        value = Cell(f"{r.value:.6g} {r.unit}".strip(), f"{r.value:.9g}")
        rows.append(Row("", (*map(text_cell, (r.metric, r.row, r.arch)), value, text_cell(r.note))))
    columns = columns_of("metric", "row", "network", numbers=["value"], more=["asked of"])
    caption = "Measurements other than accuracy"
    return Grid(caption, columns, tuple(rows[:200])) if rows else None


def _question(r: Record) -> tuple[object, ...]:
    of = (r.metric, r.row, r.set_key, r.step, r.draw, r.seed)
    return (*of, r.arch, r.data_digest, r.numerics, r.source, r.note)


def _deviation(r: Record) -> Cell:
    try:
        std = float(r.versions.get("std", ""))
    except ValueError:
        return DASH
    return Cell(percent(std), f"{std:.9g}") if 0 <= std <= 1 else DASH


def _counted(line: Line) -> Cell:
    return Cell(counted(line), str(line.summary.n), (str(line.summary.n), line.counts))


def _number(value: float, heat: float | None = None) -> Cell:
    return Cell(percent(value), f"{value:.9g}", heat=heat)


def result_cells(line: Line) -> list[Cell]:
    s = line.summary
    gap = DASH
    if line.gap is not None:
        apart = bool(line.separate)
        parts = (percent(line.gap, sign=True), "yes" if apart else "no")
        gap = Cell(signed(line.gap), f"{line.gap:.9g}", parts, apart)
    interval = DASH
    if s.half is not None:
        low, high = percent(max(0.0, s.low)), percent(min(1.0, s.high))
        interval = Cell(ends(line), f"{s.low:.9g}", (low, high))
    return [
        Cell(percent(s.mean), f"{s.mean:.9g}"),
        interval,
        gap,
        _counted(line),
        Cell(percent(s.std), f"{s.std:.9g}") if s.n > 1 else DASH,
    ]


def costs(table: Sequence[Line], every: bool = False) -> tuple[str, ...]:
    """Headings of what rows cost; bytes of labels and of teachers where there are some."""
    most = [max((of(x) for x in table), default=0) for of in _MORE.values()]
    return ("size", *(n for n, b in zip(_MORE, most, strict=True) if b or every), "s / student")


def cost_cells(line: Line, heads: Sequence[str]) -> list[Cell]:
    more = [size_cell(of(line)) for name, of in _MORE.items() if name in heads]
    seconds = Cell(f"{line.seconds:.1f}", f"{line.seconds:.9g}")
    return [size_cell(line.bytes), *more, seconds]


def text_cell(text: str) -> Cell:
    return Cell(text or "–", text)


def size_cell(count: int) -> Cell:
    return Cell(size(count), str(count), (str(count),))


def differing(table: Sequence[Line]) -> list[str]:
    """In what rows were not judged alike, but for the number of images."""
    network = ["network"] if len({line.arch for line in table}) > 1 else []
    some = [CONDITIONS[i] for i in _differing(table)]
    return network + [name for name in some if name not in ("hash", "images a class")]


def differing_in(table: Sequence[Line]) -> list[int]:
    """Which conditions differ; the hash only where one name of a protocol has several."""
    hashes = {x.conditions.protocol_hash for x in table}
    told = len({x.protocol for x in table}) == len(hashes)
    some = _differing(table)
    return [i for i in some if not (told and CONDITIONS[i] == "hash")]


def _differing(table: Sequence[Line]) -> list[int]:
    return [i for i in range(len(CONDITIONS)) if len({x.conditions[i + 1] for x in table}) > 1]


def _caption(table: Sequence[Line], differ: Sequence[int], student: bool) -> str:
    """What all rows have in common."""
    if not table:
        return "Accuracy"
    first = table[0].conditions
    apart = {*differ, *_differing(table)}
    known = {name: str(first[i + 1]) for i, name in enumerate(CONDITIONS) if i not in apart}
    parts = ["Accuracy on test images" + (f" of {known['data']}" if "data" in known else "")]
    if "protocol" in known:
        parts.append(known["protocol"] + (f" ({known['hash']})" if "hash" in known else ""))
    parts += [known[name] for name in ("numerics", "labels of teachers") if known.get(name)]
    return ", ".join([*parts, *([] if student else [f"student: {table[0].arch}"])])
