"""What a person sees: progress, tables, errors. The only place that prints."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stillroom.errors import StillroomError

if TYPE_CHECKING:
    from stillroom.runtime import Session
    from stillroom.tables import Line, Rival


def plain(text: str) -> str:
    """Foreign text for a terminal: no markup of rich's, no control characters of its own."""
    shown = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return escape("".join(shown))


def say(text: str) -> None:
    """Print a line of plain text to standard output."""
    Console(soft_wrap=True).print(plain(text), highlight=False)


@contextlib.contextmanager
def _cleanly(shown: Session) -> Iterator[None]:
    """Take the bar away before anything else is printed; it would hide the cursor, and be redrawn.

    Ctrl-C reaches a compiler that torch has started too: its failure then is no failure.
    """
    from stillroom.runtime import Interrupted

    try:
        yield
    except (StillroomError, Interrupted):
        raise
    except Exception as error:
        if shown.stop.is_set():
            raise Interrupted from error
        raise
    finally:
        shown.end()


def session(quiet: bool = False) -> Session:
    """A session with a progress bar on a terminal, and silent when piped or quiet."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from stillroom.runtime import Session

    console = Console(stderr=True)

    class Shown(Session):
        """Progress with rate, time left and loss."""

        def __init__(self) -> None:
            super().__init__()
            self.bar: Progress | None = None
            self.task: Any = None
            self.began, self.first = 0.0, 0

        def begin(self, title: str, total: int, done: int = 0) -> None:
            self.began, self.first = time.monotonic(), done
            if not console.is_terminal or quiet or total == 0:
                return
            if self.bar is None:
                self.bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TextColumn("{task.completed}/{task.total}"),
                    TextColumn("{task.fields[note]}"),
                    TimeRemainingColumn(),
                    console=console,
                    transient=True,
                )
                self.bar.start()
            for old in self.bar.task_ids:
                self.bar.remove_task(old)
            self.task = self.bar.add_task(title, total=total, completed=done, note="")

        def update(self, done: int, **metrics: float) -> None:
            if self.bar is None:
                return
            rate = (done - self.first) / max(1e-9, time.monotonic() - self.began)
            note = f"{rate:.2g}/s " + " ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            self.bar.update(self.task, completed=done, note=note)

        def end(self) -> None:
            if self.bar is not None:
                self.bar.stop()
                self.bar = None

        def say(self, text: str) -> None:
            if not quiet:
                console.print(plain(text), style="dim", highlight=False)

        @contextlib.contextmanager
        def interruptible(self) -> Iterator[None]:
            with _cleanly(self), super().interruptible():
                yield

    return Shown()


def accuracy_table(lines: Sequence[Line], title: str) -> None:
    """Print rows with mean, interval, n, gaps to random and to the best coreset, bytes."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    beside = next((line.rival.row for line in lines if line.rival), None)
    rows = [_cells(line, beside) for line in lines]
    # What a narrow terminal has no room for is in the records.
    spare = {"s / student", "std", "bytes"} if console.width < 100 else set()
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
    from stillroom.tables import percent, size

    s = line.summary
    low, high = percent(max(0.0, s.low)), percent(min(1.0, s.high))
    cells = {
        "set": plain(line.row),
        "student": plain(line.arch),
        "accuracy %": percent(s.mean),
        "std": percent(s.std) if s.n > 1 else "-",
        "95 % interval": "-" if s.half is None else f"{low} .. {high}",
        "n": f"{s.n} {line.counts}",
        "vs random": percent(line.gap, sign=True) + (" *" if line.separate else ""),
    }
    if beside:
        cells[f"vs {beside}"] = _against(line.rival, beside)
    return {**cells, "bytes": size(line.bytes), "s / student": f"{line.seconds:.1f}"}


def _against(rival: Rival | None, heading: str | None) -> str:
    """The gap to the best coreset, which is named where it is not the column's."""
    if rival is None:
        return "-"
    from stillroom.tables import percent

    name = "" if rival.row == heading else f" ({rival.row})"
    return percent(rival.gap, sign=True) + name + (" *" if rival.separate else "")


def key_values(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Print a two-column listing."""
    table = Table(title=plain(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(plain(name), plain(value))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
