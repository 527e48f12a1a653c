"""Several sets beside one another: their headline rows, and the differences between them."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.errors import StillroomError
from stillroom.evaluation.statistics import Paired
from stillroom.report.gather import Shown, among, distillations, pooled
from stillroom.report.grids import (
    CONDITIONS,
    DASH,
    RESULT,
    Cell,
    Grid,
    Kind,
    Row,
    columns_of,
    cost_cells,
    costs,
    differing,
    differing_in,
    network_grid,
    result_cells,
    size_cell,
    text_cell,
    under,
)
from stillroom.report.sentences import signed
from stillroom.tables import Conditions, Line, compare, other_labels, percent
from stillroom.types import Record


def comparison_grid(sets: Sequence[Shown], every: bool = False) -> Grid:
    """The headline line of every set, side by side; a set without records has dashes.

    What they were measured under is a column if it differs, or with `every` in any case.
    """
    mains = [s.main for s in sets if s.main]
    some = range(len(CONDITIONS)) if every else differing_in(mains)
    differ = [i for i in some if CONDITIONS[i] not in ("protocol", "data", "images a class")]
    cost = costs(mains, every)
    numbers = (*RESULT[:-1], "images", *cost)
    labels = len({s.data.label_kind for s in sets}) > 1 or every
    more = ("data", "student", *(["labels"] if labels else []), *(CONDITIONS[i] for i in differ))
    columns = columns_of("set", "protocol", numbers=numbers, more=more)

    rows, company = [], pooled(sets)
    for whole in distillations(sets, company):
        kinds = {s.data.label_kind for s in sets if s.keys & whole.set_keys}
        judged = _judged(whole, sorted(kinds) if labels else [], differ)
        head = (text_cell(f"{whole.row}, all distillations"), text_cell(whole.protocol))
        rows.append(
            Row("base", (*head, *result_cells(whole)[:-1], DASH, *cost_cells(whole, cost), *judged))
        )
    for shown in sets:
        line, n = shown.main, len(shown.data)
        name, images = text_cell(shown.name), Cell(str(n), str(n))
        if line is None:
            known = shown.data.data.get("name")
            data = text_cell(known[:80] if isinstance(known, str) else "")
            sizes = (size_cell(shown.bytes), *[DASH] * (len(cost) - 1))
            cells: tuple[Cell, ...] = (*[DASH] * 5, images, *sizes, data, DASH)
            cells += tuple(text_cell(shown.data.label_kind) for _ in range(labels))
            cells += (DASH,) * len(differ)
        else:
            judged = _judged(line, [shown.data.label_kind] if labels else [], differ)
            cells = (
                text_cell(line.protocol),
                *result_cells(among(line, company))[:-1],
                images,
                *cost_cells(line, cost),
                *judged,
            )
        rows.append(Row("own", (name, *cells)))
    rows.sort(key=lambda row: float(row.cells[2].value or -1), reverse=True)
    caption = "The last step of every set, on its own network where that was measured"
    if different := differing(mains):
        caption += f"; not judged alike: they differ in {', '.join(different)}"
    if len({len(s.data) for s in sets}) > 1:
        caption += "; of different numbers of images: compare accuracy with size"
    if told := _other_labels([s for s in sets if s.main]):
        caption += f"; {told}"
    return Grid(caption, columns, tuple(rows), 2)


def _judged(line: Line, labels: Sequence[str], differ: Sequence[int]) -> tuple[Cell, ...]:
    """Data, student, kind of labels where sets differ in it, and the other conditions."""
    own = [text_cell(", ".join(labels))] if labels else []
    return (text_cell(line.conditions.benchmark), text_cell(line.arch), *own, *under(line, differ))


def _other_labels(sets: Sequence[Shown]) -> str:
    kinds = [(s.main and s.main.conditions.taught) or s.data.label_kind for s in sets]
    return other_labels(kinds, [s.name for s in sets])


def compared_networks(sets: Sequence[Shown]) -> Grid | None:
    """The headline rows of several sets on every network."""
    own: Kind = "own"
    return network_grid([(s.name, own, s.networks()[s.main.row]) for s in sets if s.main])


def paired_grid(sets: Sequence[Shown]) -> Grid | None:
    """Every later set against the first, student by student of the same seed, where that is fair.

    None where no two were judged alike with a seed in common.
    """
    judged = [s for s in sets if s.main]
    if len(judged) < 2:
        return None
    first, *others = judged
    rows = []
    for other in others:
        found = _paired(other, first)
        if found is not None:
            gap = found.difference
            ends = f"{signed(gap.low)} to {signed(gap.high)}" if gap.half is not None else ""
            p = Cell(f"{found.p:.2g}", f"{found.p:.9g}") if found.p is not None else DASH
            number = Cell(signed(gap.mean), f"{gap.mean:.9g}")
            n = Cell(str(gap.n), str(gap.n))
            parts = (percent(gap.low, sign=True), percent(gap.high, sign=True)) if ends else ()
            between = Cell(ends or "–", f"{gap.low:.9g}" if ends else "", parts)
            rows.append(Row("", (text_cell(other.name), number, between, p, n)))
    if not rows:
        return None
    numbers = ("difference, points", "95 % interval", "p", "students of one seed")
    caption = (
        f"Against {first.name}, student by student of the same seed (paired t test; no p where "
        "all differences are equal or there are fewer than three)"
    )
    if told := _other_labels(judged):
        caption += f"; {told}"
    return Grid(caption, columns_of("set", numbers=numbers), tuple(rows))


def _paired(a: Shown, b: Shown) -> Paired | None:
    try:
        return compare(*([r for r in s.records if _of(r, s.main)] for s in (a, b)))
    except StillroomError:  # not judged alike
        return None


def _of(record: Record, line: Line | None) -> bool:
    """Whether a student is one of a line's."""
    if line is None or record.set_key not in line.set_keys or record.step != line.step:
        return False
    same = all(getattr(record, n) == getattr(line.conditions, n) for n in Conditions._fields)
    return same and record.metric == "accuracy" and record.draw is None
