"""Progress on a terminal: a bar with rate, time left and loss, and notes; silent when piped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stillroom.errors import StillroomError
from stillroom.session import Interrupted, Session


def plain(text: str) -> str:
    """Foreign text for a terminal: no markup of rich's, no control characters of its own."""
    shown = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return escape("".join(shown))


class Shown(Session):
    """A session that shows what it does on standard error; with `quiet` it shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__()
        self._console, self._quiet = Console(stderr=True), quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began, self._first = 0.0, 0

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self._began, self._first = time.monotonic(), done
        if not self._console.is_terminal or self._quiet or total == 0:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        for old in self._bar.task_ids:
            self._bar.remove_task(old)
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def update(self, done: int, **metrics: float) -> None:
        if self._bar is None or self._task is None:
            return
        rate = (done - self._first) / max(1e-9, time.monotonic() - self._began)
        note = f"{rate:.2g}/s " + " ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        self._bar.update(self._task, completed=done, note=note)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(plain(text), style="dim", highlight=False)

    @contextlib.contextmanager
    def interruptible(self, minutes: float | None = None) -> Iterator[None]:
        """As any session's, and the bar is gone before anything else is printed.

        It would hide the cursor, and be redrawn. Ctrl-C reaches a compiler that torch has started
        too: its failure then is no failure.
        """
        try:
            with super().interruptible(minutes):
                yield
        except (StillroomError, Interrupted):
            raise
        except Exception as error:
            if self.stop.is_set():
                raise Interrupted from error
            raise
        finally:
            self.end()
