"""What a person reads on standard output: lines and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from stillroom.progress import plain

if TYPE_CHECKING:
    from stillroom.artefacts.labels import Relabels
    from stillroom.tables import Line, Rival


MORE_BYTES = ("+ labels", "+ teachers")  # columns of a table, where there are some


def say(text: str) -> None:
    """Print a line of plain text to standard output."""
    Console(soft_wrap=True).print(plain(text), highlight=False)


def accuracy_table(lines: Sequence[Line], title: str) -> None:
    """Print rows with mean, interval, n, gaps to random and to the best coreset, bytes."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    beside = next((line.rival.row for line in lines if line.rival), None)
    rows = [_cells(line, beside) for line in lines]
    # What a narrow terminal has no room for is in the records.
    spare = {"s / student", "std", "bytes", *MORE_BYTES} if console.width < 100 else set()
    spare |= {name for name in MORE_BYTES if all(row[name] == "-" for row in rows)}
    archs = {line.arch for line in lines}
    if spare and len(archs) == 1:
        spare, title = spare | {"student"}, f"{title}, student: {archs.pop()}"
    names = [name for name in (rows[0] if rows else ()) if name not in spare]
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    for name in names:
        words = name in ("set", "student")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    console.print(table)
    if any(line.separate or (line.rival and line.rival.separate) for line in lines):
        console.print("* the 95 % intervals do not touch", style="dim", highlight=False)


def _cells(line: Line, beside: str | None) -> dict[str, str]:
    """One row of the accuracy table, by the headings of its columns."""
    from stillroom.tables import percent, plural, size, span

    s = line.summary
    cells = {
        "set": plain(line.row),
        "student": plain(line.arch),
        "accuracy %": percent(s.mean),
        "std": percent(s.std) if s.n > 1 else "-",
        "95 % interval": span(s, " .. ") or "-",
        "n": plural(s.n, line.counts.removesuffix("s")),
        "vs random": percent(line.gap, sign=True) + (" *" if line.separate else ""),
    }
    if beside:
        cells[f"vs {beside}"] = _against(line.rival, beside)
    more = zip(MORE_BYTES, (line.label_bytes, line.teacher_bytes), strict=True)
    cells |= {"bytes": size(line.bytes), **{name: size(n) if n else "-" for name, n in more}}
    return {**cells, "s / student": f"{line.seconds:.1f}"}


def _against(rival: Rival | None, heading: str | None) -> str:
    """The gap to the best coreset, which is named where it is not the column's."""
    if rival is None:
        return "-"
    from stillroom.tables import percent

    name = "" if rival.row == heading else f" ({rival.row})"
    return percent(rival.gap, sign=True) + name + (" *" if rival.separate else "")


def labels_of_teachers(found: Relabels | None) -> list[tuple[str, str]]:
    """What labels of teachers are, as pairs for a listing; nothing where there are none."""
    if found is None:
        return []
    from stillroom.tables import plural, size

    of, policy = found.header, found.header.policy
    kept = "" if of.kept == of.epochs else f" (of {of.kept} kept, used again in turn)"
    drawn = f"crops of {policy.scale[0]:g} to {policy.scale[1]:g}"
    drawn += (", flips" if policy.flip else "") + (
        f", {policy.shuffle} x {policy.shuffle} patches shuffled" if policy.shuffle > 1 else ""
    )
    drawn += f", {policy.mix} in a batch" if policy.mix != "none" else ""
    told = [f"{one.arch} {one.index}" for one in found.told]
    named = told or [f"{plural(len(of.teachers), 'network')} that nobody describes"]
    each = f"{of.codec}, batches of {of.batch}, seed {of.seed}"
    return [
        ("labels of teachers", f"{plural(of.epochs, 'epoch')}{kept} in {each}"),
        ("of views", f"{drawn}, {policy.size} pixels a side"),
        ("and of images", "one soft label each: the mean of the teachers' logits, float16"),
        ("teachers", ", ".join(named)),
        ("these labels", f"{size(found.nbytes)}, digest {found.digest}"),
    ]


def rows(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print a table of texts."""
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    for head in heads:
        table.add_column(plain(head), overflow="fold")
    for row in cells:
        table.add_row(*map(plain, row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def key_values(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Print a two-column listing."""
    table = Table(title=plain(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(plain(name), plain(value))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
