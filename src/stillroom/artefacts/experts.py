"""`Expert`: the stage that trains one network on the real data and keeps the way it went.

Its parameters after every epoch, as one array [snapshots, P] that is read row by row from disk.
MTT: Cazenavette et al. 2022, arXiv:2203.11932; specification of trajectory matching, section 3.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.artefacts.difficulty import Difficulty, by_difficulty, difficulty_of
from stillroom.artefacts.given import Moved
from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.store import MANIFEST, Store
from stillroom.artefacts.training import TOLD, Work, training_memory
from stillroom.errors import StillroomError
from stillroom.files import read_json, readable_os_errors, sha256_file, write_atomic
from stillroom.nets.inner import flat, put
from stillroom.nets.zoo import Arch
from stillroom.runtime import Numerics, Runtime

TRAJECTORY, FIRST = "trajectory.npy", "first.npy"
Kept = Literal["float32", "float16"]


@dataclass(frozen=True)
class Trajectory:
    """The way an expert went: parameters after epochs, in the order of its network.

    `epochs` are those of the rows of `rows` [S,P], which lie on disk; where there is a `first`
    float32 [P], they are the differences to it, in float16. `accuracy` is that of its end
    on the real test images; `moved`: of given ones, classes that they know by other numbers.
    """

    arch: Arch
    epochs: tuple[int, ...]
    rows: npt.NDArray[np.floating[Any]]
    accuracy: float
    seconds: float
    moved: tuple[Moved, ...] = ()
    first: npt.NDArray[np.float32] | None = None

    def after(self, epoch: int) -> Tensor:
        """float32 [P] after so many epochs; 0 is before the first.

        Raises: StillroomError if that was not kept.
        """
        if epoch not in self.epochs:
            raise StillroomError(f"an expert of {self.arch.name} was not kept at epoch {epoch}")
        row = np.array(self.rows[self.epochs.index(epoch)], dtype=np.float32)
        return torch.from_numpy(row if self.first is None else self.first + row)

    def last(self) -> Tensor:
        """float32 [P] at the end of its training."""
        return self.after(self.epochs[-1])


@dataclass(frozen=True)
class Expert(Stage):
    """One expert: number `index` of its architecture and schooling on a benchmark.

    Kept are the epochs from `since` to `upto`, and the last one if `whole`; without it the training
    stops there. `kept` float16: half the bytes, as differences to the first of them. As an expert's
    way does not depend on where it stops where its rate is constant, a schooling with a schedule is
    always trained as if to its end.
    """

    kind: ClassVar[str] = "expert"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/difficulty.py",
        "artefacts/experts.py",
        "artefacts/given.py",
        "artefacts/schooling.py",
        "artefacts/training.py",
        "nets/inner.py",
    )

    schooling: Schooling
    bench: dict[str, Any]
    arch: Arch
    index: int
    upto: int
    whole: bool
    store: Path = field(compare=False)
    since: int = 0
    kept: Kept = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.since <= self.upto:
            raise StillroomError(
                f"experts are wanted from epoch {self.since} to {self.upto}; give them a lower "
                "--since, or a higher --upto"
            )
        if not 1 <= self.upto <= self.schooling.passes:
            raise StillroomError(
                f"experts are wanted up to epoch {self.upto} and trained for "
                f"{self.schooling.passes}; give them more --epochs, or a lower --upto"
            )
        if self.schooling.select == "best" or self.schooling.raw_pixels:
            raise StillroomError(
                "experts take images as students do and are kept after every epoch: their "
                "schooling cannot select the best weights or take raw pixels"
            )

    def identity(self) -> dict[str, Any]:
        """Everything that determines the array."""
        return {
            "schooling": self.schooling.model_dump(mode="json"),
            "data": self.bench["digest"],
            "arch": self.arch.name,
            "index": self.index,
            "numerics": self.numerics,
            "epochs": self.epochs,
            **({} if self.kept == "float32" else {"kept": self.kept}),
            **({"difficulty": self.difficulty.key()} if self.difficulty else {}),
        }

    @property
    def numerics(self) -> Numerics:
        """Those of its schooling."""
        return self.schooling.numerics

    @property
    def difficulty(self) -> Difficulty | None:
        """What orders its data, where they are ordered."""
        return difficulty_of(self.schooling.order, self.bench, self.arch, self.store)

    def needs(self) -> tuple[Stage, ...]:
        """How difficult images are, where that orders them."""
        return () if self.difficulty is None else (self.difficulty,)

    def about(self) -> str:
        """What it is, for a listing."""
        way = f"epochs {self.since} to {self.upto}" + (
            f" of {self.trained.passes}" if self.whole else ""
        )
        return f"{self.arch.name} {self.index} of {self.bench['name']}, {way}"

    @property
    def trained(self) -> Schooling:
        """The schooling as far as it is followed."""
        if self.whole:
            return self.schooling
        return self.schooling.model_copy(update={"stop": self.upto})

    @property
    def epochs(self) -> tuple[int, ...]:
        """Those whose parameters are kept."""
        last = self.schooling.passes
        return (
            *range(self.since, self.upto + 1),
            *((last,) if self.whole and last > self.upto else ()),
        )

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Train the network, from the snapshot of a killed run if there is one, or go on from where
        one in the store ends that went the same way.

        Raises: StillroomError if it diverges.
        """
        rt = rt.under(self.numerics)  # whatever it is made for
        followed = dataclasses.replace(self, schooling=self.trained, whole=True)
        # Compiled or not by the whole schooling, so that where it stops changes no byte.
        work = Work(followed, out, rt.sized(dataclasses.replace(self, whole=True).flops(rt)))
        if self.difficulty is not None:
            work.data = dataclasses.replace(work.data, seen=self._seen(work.data.labels.cpu()))
        params = work.nets.member(0)[0]
        rows = _rows(out / TRAJECTORY, (len(self.epochs), len(flat(params))), self.kept)

        def trail(epoch: int, weights: dict[str, Tensor]) -> None:
            if epoch not in self.epochs:
                return
            theta = flat({n: weights[n] for n in params}).float().cpu().numpy()
            if self.kept == "float16":
                if epoch == self.since:
                    write_atomic(out / FIRST, _npy(theta))
                theta = theta - np.load(out / FIRST, allow_pickle=False)
            rows[self.epochs.index(epoch)] = theta
            rows.flush()

        work.trail = trail
        work.restore()
        if not work.progress.epochs:
            self._follow(work, rows)
        work.run()
        work.tell()

    def there(self, rt: Runtime) -> int:
        """Epochs of the training that need not be made: another expert in the store has them.

        None of a network with buffers, which are kept nowhere.
        """
        return 0 if self._has_buffers(rt) else self._kin()[1]

    def _has_buffers(self, rt: Runtime) -> bool:
        return nets_for(self.arch, open_bench(self.bench, self.store, rt), rt).has_batchnorm()

    def _follow(self, work: Work, rows: np.memmap[Any, Any]) -> None:
        """Take over what another expert kept, and begin at its last epoch that is of use."""
        folder, done = (self.store, 0) if self._has_buffers(work.rt) else self._kin()
        if not done:
            return
        kept = [epoch for epoch in self.epochs if epoch <= done]
        told = _manifest(folder / MANIFEST, (folder / MANIFEST).stat().st_mtime_ns)
        other = dataclasses.replace(self, **_reach(told["epochs"])).load(folder)
        for i, epoch in enumerate(kept):
            rows[i] = other.after(epoch).numpy()
        put(other.after(done), work.nets.member(0)[0])
        work.begin_at(done, other.seconds * done / other.epochs[-1])

    def _kin(self) -> tuple[Path, int]:
        """The expert in the store that spares most epochs, and how many; 0 if there is none.

        It is this one but for the epochs that were kept, and made by this very code. Where steps
        remember steps before them, nothing can be gone on with: then it has to have all.
        """
        best, mine = (self.store, 0), self.identity()
        if self.kept != "float32":  # rounded parameters are no place to go on from
            return best
        wanted, last = set(self.epochs), self.trained.passes
        for path in sorted(self.store.glob(f"{self.kind}-*/{MANIFEST}")):
            theirs = _manifest(path, path.stat().st_mtime_ns)
            if {**theirs, "epochs": 0} != {**mine, "epochs": 0}:
                continue
            if self.key_of(theirs) != path.parent.name:
                continue
            has = set(theirs["epochs"])
            usable = [e for e in has if e <= last and {w for w in wanted if w <= e} <= has]
            done = max(usable, default=0)
            may = done == last or not self.schooling.momentum
            if done > best[1] and may and _sound(path):
                best = (path.parent, done)
        return best

    def _seen(self, labels: Tensor) -> Callable[[int], Tensor]:
        """Which rows int64 an epoch sees, by `Order.seen` of every class."""
        stage = self.difficulty
        assert stage is not None
        scores = stage.load(Store(self.store).folder(stage.key()))
        ranked, order = by_difficulty(scores, labels), self.schooling.order
        return lambda epoch: torch.cat(
            [rows[torch.tensor(order.seen(epoch, len(rows)))] for rows in ranked]
        )

    def flops(self, rt: Runtime) -> float:
        """Operations of its training and of its test: a static count."""
        bench, s = open_bench(self.bench, self.store, rt), self.trained
        images = 3.0 * s.passes * s.looks * len(bench.train) + len(bench.test)
        return images * nets_for(self.arch, bench, rt).forward_flops()

    def memory(self, rt: Runtime) -> int:
        """Bytes that its training holds."""
        return training_memory(self, dataclasses.replace(self, whole=True).flops(rt), rt)

    def nbytes(self, rt: Runtime) -> int:
        """Bytes of the array: four, or two, a parameter and epoch that is kept."""
        bench = open_bench(self.bench, self.store, rt)
        params = nets_for(self.arch, bench, rt).make(1, self.index, self.kind).member(0)[0]
        bytes_each = 4 * len(self.epochs) if self.kept == "float32" else 2 * len(self.epochs) + 4
        return bytes_each * sum(value.numel() for value in params.values())

    def load(self, folder: Path) -> Trajectory:
        """The way it went; rows stay on disk until they are asked for.

        Raises: StillroomError if the array is not the one that this stage writes.
        """
        part = folder / "0000"
        rows = read_rows(folder, len(self.epochs), self.kept)
        first = np.load(part / FIRST, allow_pickle=False) if self.kept == "float16" else None
        told = read_json(part / TOLD)
        seconds = float(read_json(part / "timing.json")["seconds"])
        accuracy = float(told["accuracy"])
        return Trajectory(self.arch, self.epochs, rows, accuracy, seconds, first=first)


@functools.lru_cache(maxsize=4096)
def _manifest(path: Path, changed: int) -> dict[str, Any]:
    """The identity that an artefact's manifest tells; nothing if it is damaged."""
    try:
        found = read_json(path)["identity"]
    except (StillroomError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("epochs"), list) else {}


def _sound(path: Path) -> bool:
    """Whether the array beside a manifest is the one that was published."""
    told: object = read_json(path)["files"].get(f"0000/{TRAJECTORY}")
    array = path.parent / "0000" / TRAJECTORY
    if not array.is_file():
        return False
    now = array.stat()
    return _digest(array, now.st_mtime_ns, now.st_size) == told


@functools.lru_cache(maxsize=4096)
def _digest(array: Path, changed: int, size: int) -> str:
    """Of the file as it is now. Read once by a process: plans ask before the work does, and a
    hundred experts may be 25 GB.
    """
    return sha256_file(array)


def _reach(epochs: list[int]) -> dict[str, Any]:
    """`since`, `upto` and `whole` of the expert that keeps these epochs."""
    upto = next((e for e in epochs if e + 1 not in epochs), 0)
    return {"since": epochs[0], "upto": upto, "whole": epochs[-1] > upto}


def _rows(path: Path, shape: tuple[int, int], kept: Kept) -> np.memmap[Any, Any]:
    """The array on disk, as a killed run left it or new."""
    if path.exists():
        found = np.load(path, mmap_mode="r+", allow_pickle=False)
        if isinstance(found, np.memmap) and found.shape == shape and found.dtype == np.dtype(kept):
            return found
    return new_rows(path, shape, kept)


def new_rows(path: Path, shape: tuple[int, int], kept: Kept = "float32") -> np.memmap[Any, Any]:
    """An array [snapshots, P] on disk.

    Raises: StillroomError if there is no room for it.
    """
    with readable_os_errors(path):
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(kept), shape=shape)


def read_rows(folder: Path, count: int, kept: Kept = "float32") -> npt.NDArray[np.floating[Any]]:
    """The array [count, P] of an artefact, mapped.

    Raises: StillroomError if it is absent, damaged or another.
    """
    path = folder / "0000" / TRAJECTORY
    try:
        rows: npt.NDArray[np.floating[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise StillroomError(
            f"{path}: not readable ({why}); remove {folder} and make it again"
        ) from error
    if rows.ndim != 2 or len(rows) != count or rows.dtype != np.dtype(kept):
        raise StillroomError(
            f"{path} holds {rows.dtype} {list(rows.shape)}, not {kept} [{count}, P]; remove "
            f"{folder} and make it again"
        )
    return rows


def _npy(array: npt.NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
