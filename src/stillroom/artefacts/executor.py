"""Who runs the shards of a stage: this process in turn, or local worker processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from stillroom.artefacts.stage import Stage
from stillroom.errors import StillroomError
from stillroom.files import locked, readable_os_errors, remove_leftovers, write_atomic
from stillroom.runtime import Interrupted, Runtime

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

        Raises: StillroomError if a worker process keeps dying.
        """
        left = [job for job in jobs if not (job.out / DONE).is_file()]
        if len(left) <= 1:
            return Serial().run(left, rt)
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
        with ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")) as pool:
            pending = {pool.submit(_worker, job, _without_session(rt)) for job in jobs}
            done = 0
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in finished:
                    if future.exception() is not None:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise future.exception()  # type: ignore[misc]
                done += len(finished)
                rt.session.update(done)
                if rt.session.stop.is_set():
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise Interrupted
        rt.session.end()


def _without_session(rt: Runtime) -> dict[str, object]:
    """A session holds a lock, which does not pickle; the worker makes its own."""
    return {f.name: getattr(rt, f.name) for f in dataclasses.fields(rt) if f.name != "session"}


def _worker(job: Job, settings: dict[str, object]) -> None:
    rt = Runtime(**settings)  # type: ignore[arg-type]
    with rt.session.interruptible():
        run_job(job, rt)
