"""What one process shows and remembers while it works, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(BaseException):
    """The user asked to stop (Ctrl-C); everything needed to go on is on disk."""


class Session:
    """What one process shows and remembers while it works; never part of a result.

    The base class is silent. `cache` holds compiled functions and opened data between shards.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.cache: dict[Any, Any] = {}

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A piece of work of `total` steps starts; `done` of them were done by an earlier run."""

    def update(self, done: int, **metrics: float) -> None:
        """`done` steps of the piece are finished."""

    def end(self) -> None:
        """The piece is finished."""

    def say(self, text: str) -> None:
        """Tell the user one line."""

    @contextlib.contextmanager
    def interruptible(self, minutes: float | None = None) -> Iterator[None]:
        """The first Ctrl-C asks the loop to stop at a clean point; the second stops at once.

        So does the end of `minutes`, if they are given.
        """

        def end() -> None:
            self.say("the minutes are up; stopping after this step ...")
            self.stop.set()

        timer = threading.Timer((minutes or 0) * 60, end)
        timer.daemon = True
        if minutes is not None:
            timer.start()
        try:
            with self._patient():
                yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def _patient(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: object) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.stop.set()
            self.say("stopping after this step ... (Ctrl-C again stops at once)")

        old = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)

    def check(self) -> None:
        """Raise Interrupted if the user asked to stop."""
        if self.stop.is_set():
            raise Interrupted
