"""Who runs the shards of a stage: this process in turn, or local worker processes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from stillroom.artefacts.stage import Stage
from stillroom.errors import StillroomError
from stillroom.files import locked, readable_os_errors, remove_leftovers, write_atomic
from stillroom.runtime import Runtime
from stillroom.session import Interrupted, Session

DONE = "done"


@dataclass(frozen=True)
class Job:
    """One shard of a stage and the folder that it fills."""

    stage: Stage
    shard: int
    out: Path


class Executor(Protocol):
    """Runs jobs until all are done; a job that is marked done is not run again."""

    def run(self, jobs: Sequence[Job], rt: Runtime) -> None:
        """Run every job that is not done yet."""


def run_job(job: Job, rt: Runtime) -> None:
    """Run one shard under its lock and mark it done.

    The lock matters when a parent was killed: its orphaned worker may still be writing.
    """
    with locked(job.out.with_suffix(".lock"), remove=True):
        if (job.out / DONE).is_file():
            return
        with readable_os_errors(job.out):
            job.out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(job.out)
        with rt.activate():
            job.stage.make(job.shard, job.out, rt)
        write_atomic(job.out / DONE, "")


class Serial:
    """One shard after another, in this process."""

    def run(self, jobs: Sequence[Job], rt: Runtime) -> None:
        """Run every job that is not done yet."""
        for job in jobs:
            rt.session.check()
            run_job(job, rt)


@dataclass(frozen=True)
class Processes:
    """Up to `workers` shards at once, each in a process of its own.

    A worker that dies (out of memory, killed) is replaced and its shard run again, `retries` times.
    """

    workers: int
    retries: int = 1

    def run(self, jobs: Sequence[Job], rt: Runtime) -> None:
        """Run every job that is not done yet.

        Raises: StillroomError if the stage holds code that a new process cannot import, or if a
        worker process keeps dying.
        """
        left = [job for job in jobs if not (job.out / DONE).is_file()]
        if len(left) <= 1:
            return Serial().run(left, rt)
        _check_travels([job.stage for job in left])
        for _ in range(self.retries + 1):
            try:
                self._round(left, rt)
            except BrokenProcessPool:
                left = [job for job in left if not (job.out / DONE).is_file()]
                continue
            return None
        raise StillroomError(
            f"a worker process died {self.retries + 1} times (out of memory?); "
            "run with fewer --workers"
        )

    def _round(self, jobs: Sequence[Job], rt: Runtime) -> None:
        title = jobs[0].stage.kind
        rt.session.begin(f"{title}: {len(jobs)} shards, {self.workers} workers", len(jobs))
        others = set(active_children())
        with ProcessPoolExecutor(
            self.workers,
            mp_context=get_context("spawn"),
            initializer=signal.signal,  # until a worker can stop cleanly, Ctrl-C must not end it
            initargs=(signal.SIGINT, signal.SIG_IGN),
        ) as pool:
            pending = {pool.submit(_worker, job, _without_session(rt)) for job in jobs}
            done = 0
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in finished:
                    if future.exception() is not None:
                        pool.shutdown(cancel_futures=True)  # waits: no lock is freed under a writer
                        raise future.exception()  # type: ignore[misc]
                done += len(finished)
                rt.session.update(done)
                if rt.session.stop.is_set():
                    pool.shutdown(wait=False, cancel_futures=True)
                    _stop(pending, others)
                    raise Interrupted
        rt.session.end()


class _Scout(pickle.Pickler):
    """Pickles to find out whether it can be done; remembers the last class or function it saw."""

    at: Any = None

    def persistent_id(self, value: Any) -> None:
        """Called for every object, before it is pickled."""
        if not callable(value):
            return
        self.at = value
        main = sys.modules["__main__"]
        typed = not (main.__spec__ or os.path.isfile(getattr(main, "__file__", None) or ""))
        if typed and getattr(value, "__module__", None) == main.__name__:
            raise pickle.PicklingError("a new process cannot import what was typed")


def _check_travels(stages: Sequence[Stage]) -> None:
    """Raises: StillroomError if a worker process could not get one of the stages."""
    scout = _Scout(io.BytesIO())
    try:
        scout.dump(stages)
    except Exception as error:  # what cannot be pickled raises what it likes
        name = getattr(scout.at, "__qualname__", type(scout.at).__qualname__)
        raise StillroomError(
            f"{name} cannot be sent to worker processes; define it at the top level of an "
            "importable module, or use workers=1"
        ) from error


def _stop(pending: set[Future[None]], others: set[BaseProcess]) -> None:
    """Ask this pool's workers to stop until they have: only a terminal's Ctrl-C reaches them."""
    while pending:
        for child in set(active_children()) - others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid or 0, signal.SIGINT)
        _, pending = wait(pending, timeout=0.5)


class _Patient(Session):
    """A worker's session: Ctrl-C may reach it from the terminal and again from its parent."""

    @contextlib.contextmanager
    def _patient(self) -> Iterator[None]:
        """Every Ctrl-C asks the loop to stop at a clean point; none stops at once."""
        signal.signal(signal.SIGINT, lambda number, frame: self.stop.set())
        yield


def _without_session(rt: Runtime) -> dict[str, object]:
    """A session holds a lock, which does not pickle; the worker makes its own."""
    return {f.name: getattr(rt, f.name) for f in dataclasses.fields(rt) if f.name != "session"}


def _worker(job: Job, settings: dict[str, object]) -> None:
    rt = Runtime(**settings, session=_Patient())  # type: ignore[arg-type]
    with rt.session.interruptible():
        run_job(job, rt)
