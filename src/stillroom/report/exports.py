"""The table of a page for other documents: Markdown, LaTeX with booktabs, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stillroom.errors import StillroomError
from stillroom.report import grids
from stillroom.report.comparisons import compared_networks, comparison_grid, paired_grid
from stillroom.report.gather import Shown
from stillroom.report.grids import Cell, Column, Grid, Row

SUFFIXES = (".md", ".tex", ".csv")
_TEX = {c: f"\\{c}" for c in "%$#_{}&"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "’": "'",
}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # some spreadsheets take wide ones too
_NOTE = "* The 95 % interval of the row and that of random do not touch."


def tables(sets: Sequence[Shown], every: bool = False) -> dict[str, grids.Grid]:
    """The tables of a page by name, those that it has; of many sets the comparing ones.

    `every`: see `accuracy_grid`.
    """
    if len(sets) > 1:
        some = {
            "accuracy": comparison_grid(sets, every),
            "differences": paired_grid(sets),
            "networks": compared_networks(sets),
        }
        return {name: grid for name, grid in some.items() if grid is not None}
    (shown,) = sets
    own, names = shown.exhibit(shown.main), shown.data.classes
    found: dict[str, grids.Grid | None] = {
        "accuracy": grids.accuracy_grid(shown, every),
        "networks": grids.networks_of(shown),
        "reported": grids.reported_grid(shown),
        "selection": grids.selection_grid(shown),
        "others": grids.others_grid(shown),
    }
    if own is not None and shown.main is not None:
        random = shown.exhibit(shown.random)
        found["classes"] = grids.class_grid(names, shown.main.row, own, random)
        found["confusion"] = grids.confusion_grid(names, own)
    return {name: grid for name, grid in found.items() if grid is not None}


def chosen(
    found: Mapping[str, Grid], name: str | None, suffix: str, several: bool = False
) -> list[Grid]:
    """The tables that a file of this suffix gets: the named one, else all; a CSV has one.

    Raises: StillroomError with those that there are.
    """
    if name is None:
        return [found["accuracy"]] if suffix == ".csv" else list(found.values())
    if name not in found:
        where = "among the tables of several sets" if several else "on this page"
        raise StillroomError(f"table={name[:80]!r} is not {where}; it has {', '.join(found)}")
    return [found[name]]


def export(grid: Grid, suffix: str) -> str:
    """The table as text: `suffix` is one of `SUFFIXES`; foreign text stays text.

    A column of drawings alone is left out.
    """
    drawn = {i for row in grid.rows for i, c in enumerate(row.cells) if c.dots and not c.text}
    kept = [i for i in range(len(grid.columns)) if i not in drawn]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in grid.rows)
    grid = replace(grid, columns=tuple(grid.columns[i] for i in kept), rows=rows)
    return {".md": _markdown, ".tex": _latex, ".csv": _csv}[suffix](grid)


def _markdown(grid: Grid) -> str:
    rows = [[column.name for column in grid.columns], *map(_texts, grid.rows)]
    head, *body = (f"| {' | '.join(map(_plain_markdown, row))} |" for row in rows)
    rule = f"|{'|'.join('--:' if c.kind == 'number' else ':--' for c in grid.columns)}|"
    note = ["", _plain_markdown(_NOTE)] if grid.marked else []
    return "\n".join([_plain_markdown(grid.caption), "", head, rule, *body, *note, ""])


def _latex(grid: Grid) -> str:
    rows = [[column.name for column in grid.columns], *map(_texts, grid.rows)]
    head, *body = (f"    {' & '.join(map(_plain_latex, row))} \\\\" for row in rows)
    places = "".join("r" if column.kind == "number" else "l" for column in grid.columns)
    note = [rf"  \par {_plain_latex(_NOTE)}"] if grid.marked else []
    start = [
        r"\begin{table}  % needs \usepackage{booktabs}",
        rf"  \caption{{{_plain_latex(grid.caption)}.}}",
        rf"  \begin{{tabular}}{{{places}}}",
    ]
    inner = [r"    \toprule", head, r"    \midrule", *body, r"    \bottomrule"]
    return "\n".join([*start, *inner, r"  \end{tabular}", *note, r"\end{table}", ""])


def _csv(grid: Grid) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_no_formula(name) for c in grid.columns for name in (c.parts or (c.name,)))
    for row in grid.rows:
        pairs = zip(grid.columns, row.cells, strict=True)
        writer.writerow(text for column, cell in pairs for text in _fields(column, cell))
    return stream.getvalue()


def _fields(column: Column, cell: Cell) -> tuple[str, ...]:
    """A cell as fields, each one number where the column is of numbers."""
    if column.parts:
        return cell.parts or ("",) * len(column.parts)
    if column.kind == "number":  # ours: it keeps its sign
        return (cell.text.replace("−", "-") if cell.value else "",)
    return (_no_formula(cell.text),)


def _no_formula(text: str) -> str:
    """Foreign text; a spreadsheet would run what begins so."""
    text = _one_line(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _plain_markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]<>|~$#!&])", r"\\\1", _one_line(text))
    # Some readers make links of bare addresses and mentions.
    return re.sub(r"(?<!\w)@(?=\w)|(?<=\w):(?=//)|(?<=www)\.", r"\\\g<0>", escaped)


def _plain_latex(text: str) -> str:
    plain = "".join(_TEX.get(c, c) for c in _one_line(text))
    # After a line's end "[" and "*" would be its arguments.
    return f"{{}}{plain}" if plain.startswith(("[", "*")) else plain


def _texts(row: Row) -> list[str]:
    return [f"{cell.text}*" if cell.apart else cell.text for cell in row.cells]


def _one_line(text: str) -> str:
    """Text without control characters, line breaks and changes of direction."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
