"""The store: one folder an artefact, named by its key, published whole by an atomic rename."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.artefacts.executor import DONE, Executor, Job, Serial
from stillroom.artefacts.given import weights_damage
from stillroom.artefacts.stage import Stage
from stillroom.artefacts.starts import start_damage
from stillroom.data.cache import entry_about, entry_damage
from stillroom.data.whitening import fit_damage
from stillroom.errors import StillroomError
from stillroom.files import (
    locked,
    read_json,
    readable_os_errors,
    remove_leftovers,
    sha256_file,
    write_json,
)
from stillroom.runtime import Runtime
from stillroom.session import Interrupted

MANIFEST = "stage.json"
NAME = re.compile(r"[a-z][a-z_-]*-[0-9a-f]{16}(\.part)?")  # anything else in the folder is not ours
MAX_CHECKED_BYTES = 2**28  # what is smaller is read and compared before it is used
DAMAGE = {  # kind -> what is wrong with an entry that no stage made
    "data": entry_damage,
    "zca": fit_damage,
    "start": start_damage,
    "weights": weights_damage,
}
MOST_AT_ONCE = 64  # artefacts; each holds an open lock, and some systems allow 256 open files


def default_store() -> Path:
    """`STILLROOM_STORE`, else a folder in the user's cache."""
    if named := os.environ.get("STILLROOM_STORE"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "stillroom"


@dataclass(frozen=True)
class Entry:
    """One line of `stillroom store list`."""

    name: str
    state: str
    bytes: int
    about: str = ""


@dataclass(frozen=True)
class Store:
    """Finished and unfinished artefacts below one folder."""

    root: Path

    def folder(self, key: str) -> Path:
        """Where the artefact of `key` lies once it is whole."""
        return self.root / key

    def part(self, key: str) -> Path:
        """Where the artefact of `key` grows."""
        return self.root / f"{key}.part"

    def complete(self, key: str) -> bool:
        """Whether the artefact is there, whole."""
        return (self.folder(key) / MANIFEST).is_file()

    def holds(self, stage: Stage) -> bool:
        """Whether the artefact of a stage is there, whole."""
        return self.complete(stage.key())

    def entries(self) -> Iterator[Entry]:
        """Everything in the store, sorted by name."""
        for path in sorted(self.root.iterdir() if self.root.is_dir() else ()):
            if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                state = "unfinished" if path.suffix == ".part" else "whole"
                yield Entry(path.name, state, _bytes(path), _about(path))

    def verify(self) -> Iterator[tuple[str, str]]:
        """Yield (name, problem) for every damaged artefact, after reading every byte."""
        for entry in self.entries():
            if entry.state == "whole" and (problem := _damage(self.root / entry.name)):
                yield entry.name, problem

    def gc(self, keep: frozenset[str] = frozenset(), everything: bool = False) -> Iterator[Entry]:
        """Remove unfinished and damaged artefacts (or everything but `keep`); yield what went.

        What another process is making at the moment stays. Lock files that nobody holds go last.
        """
        damaged = {name for name, _ in self.verify()}
        for entry in list(self.entries()):
            doomed = entry.state == "unfinished" or entry.name in damaged or everything
            if doomed and entry.name not in keep and self._removed(entry.name):
                yield entry
        self._sweep_locks()

    def discard(self, key: str) -> None:
        """Remove one artefact, if it is there.

        Raises: StillroomError if another process is at it, or it is somebody else's.
        """
        if not self._removed(key):
            raise StillroomError(
                f"{self.folder(key)}: cannot be removed; is another process at it?"
            )

    def _sweep_locks(self) -> None:
        # The folder itself stays: another process may just be about to make a lock file in it.
        for lock in sorted(self.root.glob(".locks/*")):
            if NAME.fullmatch(lock.name) and lock.is_file() and not lock.is_symlink():
                with (
                    contextlib.suppress(OSError, StillroomError),  # held, or another user's
                    locked(lock, wait=False, remove=True),
                ):
                    pass

    def _removed(self, name: str) -> bool:
        try:
            with locked(self.root / ".locks" / name.removesuffix(".part"), wait=False):
                shutil.rmtree(self.root / name, ignore_errors=True)
        except BlockingIOError:
            return False
        return not (self.root / name).exists()


def obtain(store: Store, stage: Stage, executor: Executor, rt: Runtime) -> Any:
    """Return the stage's artefact: from the store, or made now, shard by shard, and published.

    A killed run leaves finished shards and snapshots in `<key>.part`; the next call goes on from
    there. Two processes that want the same artefact wait for each other.
    """
    return obtain_all(store, [stage], executor, rt)[0]


def obtain_all(store: Store, stages: Sequence[Stage], executor: Executor, rt: Runtime) -> list[Any]:
    """Return the artefacts of independent stages, in their order; what they need is made first.

    What lacks is made one stage after another by `Serial`; other executors get the shards of up
    to `MOST_AT_ONCE` stages as one list of work. An artefact is published, and its lock freed, as
    soon as its list is done, and also where another stage of the list fails.
    """
    keys = [stage.key() for stage in stages]
    by_key = dict(zip(keys, stages, strict=True))
    _fill(store, by_key, executor, rt)
    return [stage.load(store.folder(key)) for key, stage in zip(keys, stages, strict=True)]


def _fill(store: Store, by_key: dict[str, Stage], executor: Executor, rt: Runtime) -> None:
    """Make what is not in the store; of what lacks, what it needs comes first."""
    for key in by_key:
        _refuse_damaged(store, key)
    size = 1 if isinstance(executor, Serial) else MOST_AT_ONCE
    # Again and again, because another process's `gc` may remove what was there at the first look.
    while missing := [key for key in by_key if not store.complete(key)]:
        needed = [need for key in missing for need in by_key[key].needs()]
        if needed:
            _fill(store, {need.key(): need for need in needed}, executor, rt)
        for i in range(0, len(missing), size):
            _make(store, {key: by_key[key] for key in missing[i : i + size]}, executor, rt)


def _refuse_damaged(store: Store, key: str) -> None:
    folder = store.folder(key)
    if store.complete(key) and _bytes(folder) <= MAX_CHECKED_BYTES and (problem := _damage(folder)):
        raise StillroomError(f"{folder}: {problem}; remove it with: stillroom store gc")


def _make(store: Store, wanted: dict[str, Stage], executor: Executor, rt: Runtime) -> None:
    """Make the artefacts of `wanted` that nobody has made meanwhile, each under its lock.

    Raises: what the executor raised, after what is finished was published.
    """
    with contextlib.ExitStack() as all_locks:
        held: dict[str, contextlib.ExitStack] = {}
        for key in sorted(wanted):  # one order for all processes, so that no two block each other
            lock = all_locks.enter_context(contextlib.ExitStack())
            if lock.enter_context(locked(store.root / ".locks" / key)):
                rt.session.say(f"waited for another process that was making {key}")
            if store.complete(key):
                lock.close()
            else:
                held[key] = lock
        jobs = {k: _jobs(store.part(k), stage) for k, stage in wanted.items() if k in held}
        failures: list[BaseException] = []
        try:
            executor.run([job for some in jobs.values() for job in some], rt)
        except (Exception, Interrupted) as error:  # a second Ctrl-C stops at once instead
            failures.append(error)
        for key, some in jobs.items():
            try:
                if not failures or all((job.out / DONE).is_file() for job in some):
                    _publish(store, wanted[key], key, [job.out for job in some])
            except Exception as error:
                failures.append(error)
            held[key].close()
        if failures:
            raise failures[0]


def _jobs(part: Path, stage: Stage) -> list[Job]:
    with readable_os_errors(part):
        part.mkdir(parents=True, exist_ok=True)
    return [Job(stage, i, part / f"{i:04d}") for i in range(stage.shards())]


def _publish(store: Store, stage: Stage, key: str, shards: list[Path]) -> None:
    part = store.part(key)
    with readable_os_errors(part):
        stage.finish(shards, part)
        remove_leftovers(part)
        files = sorted(p for p in part.rglob("*") if p.is_file() and p.name != MANIFEST)
        manifest = {
            "key": key,
            "kind": stage.kind,
            "about": stage.about(),
            "identity": stage.identity(),
            "files": {p.relative_to(part).as_posix(): sha256_file(p) for p in files},
        }
        write_json(part / MANIFEST, manifest)
        if store.folder(key).exists():  # left by a version that published without a manifest
            shutil.rmtree(store.folder(key))
        os.rename(part, store.folder(key))


def _damage(folder: Path) -> str:
    """What is wrong with a whole entry, after reading every byte of it, or an empty string."""
    kind = folder.name.rpartition("-")[0]
    if kind in DAMAGE:
        return DAMAGE[kind](folder)
    try:
        manifest = read_json(folder / MANIFEST)
        files: dict[str, str] = manifest["files"]
    except (StillroomError, KeyError, TypeError):
        return "its manifest is not readable"
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != digest:
            return f"{name} was altered or damaged"
    return ""


def _about(folder: Path) -> str:
    """What an entry holds, in a few words; nothing where it does not say."""
    if folder.name.startswith("data-"):
        return entry_about(folder)
    try:
        return str(read_json(folder / MANIFEST)["about"])[:120]
    except (StillroomError, KeyError, TypeError):
        return ""


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
