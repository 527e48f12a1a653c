"""The store: made once, published whole, damage found, and nothing removed that is not ours."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import stillroom
from stillroom.artefacts import stage as stages
from stillroom.artefacts import store as stores
from stillroom.artefacts.executor import Executor, Job, Processes, Serial, run_job
from stillroom.artefacts.stage import Stage, code_digest
from stillroom.artefacts.starts import keep_start
from stillroom.artefacts.store import Store, obtain, obtain_all
from stillroom.data.benchmarks import from_arrays
from stillroom.errors import StillroomError
from stillroom.files import locked, write_atomic
from stillroom.runtime import Runtime
from stillroom.session import Interrupted

RT = Runtime(device=torch.device("cpu"))
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Words(Stage):
    """Writes a word a shard; `log` counts how often."""

    kind: ClassVar[str] = "words"
    sources: ClassVar[tuple[str, ...]] = ("rng.py",)
    words: tuple[str, ...]
    log: Path = field(compare=False)
    fail_at: int = field(default=-1, compare=False)
    fail_after: int = field(default=0, compare=False)  # so many shards of all artefacts are done
    pause: float = field(default=0.0, compare=False)
    probe: Callable[[], object] = field(default=bool, compare=False)

    def identity(self) -> dict[str, Any]:
        return {"words": list(self.words)}

    def shards(self) -> int:
        return len(self.words)

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        if shard == self.fail_at:
            while len(list(out.parents[1].glob("*/*/done"))) < self.fail_after:
                time.sleep(0.01)
            raise StillroomError("no word")
        time.sleep(self.pause)
        self.probe()
        with self.log.open("a") as stream:
            stream.write(f"{shard}\n")
        write_atomic(out / "word", self.words[shard])

    def finish(self, parts: list[Path], folder: Path) -> None:
        write_atomic(folder / "all", " ".join((p / "word").read_text() for p in parts))

    def load(self, folder: Path) -> str:
        return (folder / "all").read_text()


@pytest.fixture
def opened(tmp_path: Path) -> Store:
    return Store(tmp_path / "s")


@pytest.fixture
def words(tmp_path: Path) -> Words:
    return Words(("to", "be"), tmp_path / "log")


def test_made_once(opened: Store, words: Words) -> None:
    for _ in range(2):
        assert obtain(opened, words, Serial(), RT) == "to be"
    assert words.log.read_text() == "0\n1\n"
    assert [(e.name, e.state) for e in opened.entries()] == [(words.key(), "whole")]
    assert not opened.part(words.key()).exists()
    assert list(opened.verify()) == []


def test_goes_on_where_it_failed(opened: Store, words: Words, tmp_path: Path) -> None:
    broken = Words(words.words, words.log, fail_at=1)
    assert broken.key() == words.key()
    with pytest.raises(StillroomError, match="no word"):
        obtain(opened, broken, Serial(), RT)
    assert [e.state for e in opened.entries()] == ["unfinished"]
    assert not opened.complete(words.key())
    (opened.part(words.key()) / "0001" / ".word-abcdefgh.tmp").write_text("of a killed writer")
    assert obtain(opened, words, Serial(), RT) == "to be"
    assert words.log.read_text() == "0\n1\n"
    left = {p.name for p in opened.folder(words.key()).rglob("*") if p.is_file()}
    assert left == {"word", "all", "done", "stage.json"}


def test_failure_to_publish_leaves_no_artefact(
    opened: Store, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def refuse(old: object, new: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StillroomError, match="disk is full"):
        obtain(opened, words, Serial(), RT)
    assert not opened.folder(words.key()).exists()
    monkeypatch.setattr(os, "rename", real)
    assert obtain(opened, words, Serial(), RT) == "to be"


@pytest.mark.parametrize("name", ["all", "0001/word", "stage.json"])
def test_damage_is_found_told_and_collected(name: str, opened: Store, words: Words) -> None:
    obtain(opened, words, Serial(), RT)
    path = opened.folder(words.key()) / name
    blob = bytearray(path.read_bytes())
    blob[1] ^= 1
    path.write_bytes(bytes(blob))
    assert [n for n, _ in opened.verify()] == [words.key()]
    with pytest.raises(StillroomError, match="remove it with: stillroom store gc"):
        obtain(opened, words, Serial(), RT)
    assert [e.name for e in opened.gc()] == [words.key()]
    assert obtain(opened, words, Serial(), RT) == "to be"


def test_whole_without_manifest_is_made_again(opened: Store, words: Words) -> None:
    obtain(opened, words, Serial(), RT)
    (opened.folder(words.key()) / "stage.json").unlink()
    assert [problem for _, problem in opened.verify()] == ["its manifest is not readable"]
    assert obtain(opened, words, Serial(), RT) == "to be"
    assert list(opened.verify()) == []


def _obtain(root: Path, stage: Words) -> None:
    assert obtain(Store(root), stage, Serial(), RT) == "to be"


def test_two_processes_make_it_once(opened: Store, words: Words) -> None:
    slow = Words(words.words, words.log, pause=0.1)
    children = [FORK.Process(target=_obtain, args=(opened.root, slow)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert words.log.read_text() == "0\n1\n"


# -- several artefacts at once -------------------------------------------------------------------


class Together:
    """Like worker processes: goes on with the other shards where one fails."""

    def run(self, jobs: Sequence[Job], rt: Runtime) -> None:
        failures: list[BaseException] = []
        for job in jobs:
            try:
                run_job(job, rt)
            except (StillroomError, Interrupted) as error:
                failures.append(error)
        if failures:
            raise failures[0]


def _is_held(store: Store, key: str) -> bool:
    try:
        with locked(store.root / ".locks" / key, wait=False):
            return False
    except BlockingIOError:
        return True


@pytest.mark.parametrize(
    "executor", [Serial(), Together(), Processes(2)], ids=lambda e: type(e).__name__.lower()
)
def test_one_failure_keeps_what_is_finished(
    executor: Executor, opened: Store, tmp_path: Path
) -> None:
    first, last = Words(("a", "b"), tmp_path / "log"), Words(("y", "z"), tmp_path / "log")
    broken = Words(("c", "d"), tmp_path / "log", fail_at=1, fail_after=3)
    with pytest.raises(StillroomError, match="no word"):
        obtain_all(opened, [first, broken, last], executor, RT)
    assert opened.complete(first.key())
    if not isinstance(executor, Processes):  # which may have begun it or not
        assert opened.complete(last.key()) is isinstance(executor, Together)
    assert not opened.complete(broken.key())
    assert (opened.part(broken.key()) / "0000" / "word").is_file()
    assert list(opened.verify()) == []
    assert not any(_is_held(opened, stage.key()) for stage in (first, broken, last))
    mended = Words(broken.words, broken.log)
    assert obtain_all(opened, [last, mended, first], executor, RT) == ["y z", "c d", "a b"]
    assert sorted(broken.log.read_text().split()) == ["0"] * 3 + ["1"] * 3


def test_an_interrupt_keeps_what_is_finished(opened: Store, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise Interrupted

    first, second = (Words((w,), tmp_path / "log") for w in "ab")
    stopped = Words(second.words, second.log, probe=interrupt)
    with pytest.raises(Interrupted):
        obtain_all(opened, [first, stopped], Together(), RT)
    assert opened.complete(first.key())
    assert not opened.complete(second.key())


def test_one_that_cannot_be_published_does_not_keep_the_others_back(
    opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [Words((w,), tmp_path / "log") for w in "abc"]
    real = os.rename

    def refuse(old: Path, new: Path) -> None:
        if Path(new).name == stages[0].key():
            raise OSError(28, "No space left on device")
        real(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StillroomError, match="disk is full"):
        obtain_all(opened, stages, Together(), RT)
    assert [opened.complete(stage.key()) for stage in stages] == [False, True, True]


@pytest.mark.parametrize("executor", [Serial(), Together()], ids=lambda e: type(e).__name__.lower())
def test_what_is_finished_is_free_for_others(
    executor: Executor, opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that wants only the first does not wait for the second."""
    monkeypatch.setattr(stores, "MOST_AT_ONCE", 1)
    seen: list[tuple[bool, bool, bool]] = []

    def look() -> None:
        held = (_is_held(opened, first.key()), _is_held(opened, second.key()))
        seen.append((opened.complete(first.key()), *held))

    first = Words(("a",), tmp_path / "log")
    second = Words(("b",), tmp_path / "log", probe=look)
    obtain_all(opened, [first, second], executor, RT)
    assert seen == [(True, False, True)]


def test_what_another_process_made_meanwhile_is_free_at_once(
    opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found whole only under the lock: it is not made again, nor kept locked."""
    first, second = (Words((w,), tmp_path / "log") for w in "ab")
    seen: list[bool] = []
    again = Words(second.words, second.log, probe=lambda: seen.append(_is_held(opened, key)))
    key, real, others = first.key(), stores.locked, []

    def other_was_quicker(path: Path, **how: bool):  # type: ignore[no-untyped-def]
        if path.name == key and not others:
            others.append(key)
            obtain(opened, first, Serial(), RT)
        return real(path, **how)

    monkeypatch.setattr(stores, "locked", other_was_quicker)
    assert obtain_all(opened, [first, again], Together(), RT) == ["a", "b"]
    assert seen == [False]
    assert first.log.read_text() == "0\n0\n"


def test_what_gc_takes_meanwhile_is_made_again_under_its_lock(
    opened: Store, tmp_path: Path
) -> None:
    held: list[bool] = []
    kept = Words(("a",), tmp_path / "log")
    obtain(opened, kept, Serial(), RT)
    kept = Words(("a",), tmp_path / "log", probe=lambda: held.append(_is_held(opened, kept.key())))
    other = Words(("b",), tmp_path / "log", probe=lambda: list(opened.gc(everything=True)))
    assert obtain_all(opened, [kept, other], Serial(), RT) == ["a", "b"]
    assert held == [True]


def test_what_gc_takes_while_another_lock_is_taken(
    opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole at the first look, gone before the work starts: nothing is made without its lock."""
    held: list[bool] = []
    kept, other = sorted((Words((w,), tmp_path / "log") for w in "ab"), key=Words.key)
    obtain(opened, kept, Serial(), RT)
    key, real = kept.key(), stores.locked
    kept = Words(kept.words, kept.log, probe=lambda: held.append(_is_held(opened, key)))

    def gone(path: Path, **how: bool):  # type: ignore[no-untyped-def]
        if path.name == other.key():
            shutil.rmtree(opened.folder(key), ignore_errors=True)
        return real(path, **how)

    monkeypatch.setattr(stores, "locked", gone)
    assert obtain_all(opened, [other, kept], Together(), RT) == [" ".join(other.words), *kept.words]
    assert held == [True]


@dataclass(frozen=True)
class Nothing(Stage):
    """An empty artefact."""

    kind: ClassVar[str] = "nothing"
    sources: ClassVar[tuple[str, ...]] = ("rng.py",)
    number: int

    def identity(self) -> dict[str, Any]:
        return {"number": self.number}

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        pass

    def load(self, folder: Path) -> int:
        return int(json.loads((folder / "stage.json").read_text())["identity"]["number"])


def _obtain_many(root: Path, executor: Executor) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    stages = [Nothing(i) for i in range(300)]
    assert obtain_all(Store(root), stages, executor, RT) == list(range(300))


@pytest.mark.parametrize("executor", [Serial(), Together()], ids=lambda e: type(e).__name__.lower())
def test_more_artefacts_than_a_process_may_open_files(executor: Executor, opened: Store) -> None:
    child = FORK.Process(target=_obtain_many, args=(opened.root, executor))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_gc_leaves_what_is_being_made(opened: Store, words: Words) -> None:
    slow = Words(words.words, words.log, pause=0.5)
    child = FORK.Process(target=_obtain, args=(opened.root, slow))
    child.start()
    while not opened.part(words.key()).exists():
        time.sleep(0.01)
    assert list(opened.gc(everything=True)) == []
    child.join()
    assert child.exitcode == 0
    assert [e.name for e in opened.gc(everything=True)] == [words.key()]


def _lock_files(store: Store) -> list[str]:
    return sorted(p.name for p in (store.root / ".locks").iterdir())


def test_gc_removes_locks_that_nobody_holds(opened: Store, words: Words) -> None:
    """And only those, and only ours."""
    obtain(opened, words, Serial(), RT)
    locks = opened.root / ".locks"
    held = locks / "words-0123456789abcdef"
    (locks / "notes").touch()
    (locks / "data-0123456789abcdef").symlink_to(locks / "notes")
    with locked(held):
        assert list(opened.gc()) == []
        assert _lock_files(opened) == ["data-0123456789abcdef", "notes", held.name]
        with pytest.raises(BlockingIOError), locked(held, wait=False):
            pass
    assert list(opened.gc()) == []
    assert _lock_files(opened) == ["data-0123456789abcdef", "notes"]
    assert obtain(opened, words, Serial(), RT) == "to be"


def _count(path: Path, lock: Path, turns: int) -> None:
    for _ in range(turns):
        with locked(lock):
            path.write_text(str(int(path.read_text()) + 1))


def test_gc_never_lets_two_into_one_lock(opened: Store, tmp_path: Path) -> None:
    """Lock files vanish under processes that are about to take them."""
    count, lock = tmp_path / "count", opened.root / ".locks" / "words-0123456789abcdef"
    count.write_text("0")
    children = [FORK.Process(target=_count, args=(count, lock, 300)) for _ in range(3)]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        assert list(opened.gc()) == []
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert count.read_text() == "900"
    assert list(opened.gc()) == []
    assert _lock_files(opened) == []


def test_gc_knows_its_own(opened: Store, words: Words) -> None:
    """A store that shares its folder with other things."""
    obtain(opened, words, Serial(), RT)
    for name in ("photos", "thesis.part", "words-notes", "data-2024"):
        (opened.root / name).mkdir()
    (opened.root / "words-0123456789abcdef").symlink_to(opened.root / "photos")
    assert [e.name for e in opened.entries()] == [words.key()]
    list(opened.gc(everything=True))
    names = sorted(p.name for p in opened.root.iterdir() if p.name != ".locks")
    assert names == ["data-2024", "photos", "thesis.part", "words-0123456789abcdef", "words-notes"]


def test_data_fits_and_starts_are_checked_too(opened: Store) -> None:
    """These have checksums of their own, and no manifest."""
    opened.root.mkdir()
    pixels = torch.randint(256, (12, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    images, labels = pixels.to(torch.uint8).numpy(), [0, 1] * 6
    bench = from_arrays(images, labels, images, labels, zca=True, store=opened.root)
    keep_start(bench.train.images[:4].float(), opened.root)
    kinds = {entry.name.partition("-")[0]: entry.name for entry in opened.entries()}
    assert set(kinds) == {"data", "zca", "start"}
    assert {entry.state for entry in opened.entries()} == {"whole"}
    assert list(opened.verify()) == []
    whole = opened.root.parent / "whole"
    shutil.copytree(opened.root, whole)
    spoilt = {
        "data": ("train.images.u8", "test.labels.i64", "meta.json"),
        "zca": ("zca.safetensors", "meta.json"),
        "start": ("images.safetensors",),
    }
    for kind, names in spoilt.items():
        for name in names:
            for damage in ("flip", "cut", "gone"):
                path = opened.root / kinds[kind] / name
                blob = path.read_bytes()
                if damage == "gone":
                    path.unlink()
                else:
                    middle = len(blob) // 2
                    flipped = blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :]
                    path.write_bytes(flipped if damage == "flip" else blob[:-3])
                assert [n for n, _ in opened.verify()] == [kinds[kind]], (name, damage)
                assert [e.name for e in opened.gc()] == [kinds[kind]]
                shutil.copytree(whole / kinds[kind], opened.root / kinds[kind])


def test_damaged_start_is_written_again(opened: Store) -> None:
    images = torch.rand(2, 1, 4, 4)
    path, digest = keep_start(images, opened.root)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert keep_start(images, opened.root) == (path, digest)
    assert list(opened.verify()) == []


def test_key_covers_identity_version_kind_and_code(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Words):
        kind = "other"

    class Newer(Words):
        version = 2

    class Elsewhere(Words):
        sources = ("rng.py", "types.py")

    kinds = (Words, Other, Newer, Elsewhere)
    keys = {cls(w, words.log).key() for cls in kinds for w in (("a",), ("b",))}
    assert len(keys) == 8
    assert all(re.fullmatch(r"(words|other)-[0-9a-f]{16}", key) for key in keys)


def test_code_is_part_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout of the files, in an installed release of the version."""
    package = tmp_path / "stillroom"
    (package / "nets").mkdir(parents=True)
    for name in ("__init__.py", "rng.py", "nets/a.py", "nets/b.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(stillroom, "__file__", str(package / "__init__.py"))

    def digest() -> str:
        code_digest.cache_clear()
        return code_digest(("rng.py", "nets"))

    seen = {digest()}
    (package / "nets" / "b.py").write_text("x = 2\n")
    seen.add(digest())
    (package / "nets" / "c.py").write_text("")
    seen.add(digest())
    (package / "other.py").write_text("")
    seen.add(digest())
    assert len(seen) == 3
    installed = tmp_path / "site-packages" / "stillroom"
    installed.mkdir(parents=True)
    monkeypatch.setattr(stillroom, "__file__", str(installed / "__init__.py"))
    old = digest()
    monkeypatch.setattr(stillroom, "__version__", "9.9")
    assert digest() != old
    code_digest.cache_clear()


def test_every_stage_names_sources_that_exist() -> None:
    from stillroom.evaluation.score import Score
    from stillroom.methods.distil import Distil

    package = Path(stages.__file__).parents[1]
    for stage in (Distil, Score):
        for name in stage.sources:
            assert (package / name).exists(), name


def test_manifest_says_what_it_is(opened: Store, words: Words) -> None:
    obtain(opened, words, Serial(), RT)
    manifest = json.loads((opened.folder(words.key()) / "stage.json").read_text())
    assert manifest["key"] == words.key()
    assert manifest["kind"] == "words"
    assert manifest["identity"] == {"words": ["to", "be"]}
    parts = {f"000{i}/{name}" for i in (0, 1) for name in ("word", "done")}
    assert set(manifest["files"]) == {"all", *parts}
