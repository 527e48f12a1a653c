"""`GivenExpert`: an expert that others trained, out of the replay buffers of MTT and its heirs.

Their files, `replay_buffer_<n>.pt`, hold a list of experts, each a list of snapshots (the first is
before the training), each a list of parameters in the order of the network; specification of
trajectory matching, 3.3. They are foreign files: mapped, not read whole, and as tensors alone.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stillroom.artefacts.experts import TRAJECTORY, Trajectory, new_rows, read_rows
from stillroom.artefacts.given import Moved
from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.originals import tested
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.training import TOLD
from stillroom.errors import StillroomError
from stillroom.files import canonical, read_json, sha256, sha256_file, write_json
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.inner import put
from stillroom.nets.zoo import Arch
from stillroom.nets.zoo.pickles import refuse_hungry
from stillroom.nets.zoo.weights import plain
from stillroom.runtime import Runtime

NAME = re.compile(r"replay_buffer_([0-9]{1,6})\.pt")
MOST = 10**5  # snapshots of a file, tensors of a snapshot


@dataclass(frozen=True)
class Buffers:
    """Files of experts in the order of their numbers, and the digest of what they hold.

    `epochs`, by file: of every expert that it holds.
    """

    files: tuple[Path, ...]
    epochs: tuple[tuple[int, ...], ...]
    digest: str

    def refuse_short(self, experts: int, read: int) -> None:
        """Raise StillroomError if there are too few experts, or one ends before it is read."""
        ends = [end for some in self.epochs for end in some]
        if experts > len(ends):
            raise StillroomError(
                f"{self.files[0].parent} holds {len(ends)} experts and {experts} are asked for; "
                f"say --experts {len(ends)}"
            )
        if read > min(ends[:experts]):
            raise StillroomError(
                f"experts are read up to epoch {read} and {self.files[0].parent} holds one of "
                f"{min(ends[:experts])}; give --window an earlier last, or --labeller an "
                "earlier epoch"
            )

    def find(self, index: int) -> list[list[Tensor]]:
        """Expert number `index`: its snapshots, each a list of parameters, mapped from a file."""
        for path, ends in zip(self.files, self.epochs, strict=True):
            if index < len(ends):
                return _experts(path, path.stat().st_mtime_ns)[index]
            index -= len(ends)
        raise StillroomError(f"{self.files[0].parent} holds fewer experts than are asked for")


def find_buffers(folder: Path) -> Buffers:
    """The replay buffers of a folder.

    Raises: StillroomError if it holds none, or one that is damaged or holds anything else.
    """
    found = sorted(
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := NAME.fullmatch(path.name)) and path.is_file()
    )
    if not found:
        raise StillroomError(f"{folder}: no folder with replay_buffer_0.pt, replay_buffer_1.pt ...")
    if [number for number, _ in found] != [*range(len(found))]:
        told = ", ".join(path.name for _, path in found[:4])
        raise StillroomError(
            f"{folder}: holds {told}{', ...' if len(found) > 4 else ''}: numbers that are there "
            "twice or not at all; they go from 0 on, one a file"
        )
    files = tuple(path for _, path in found)
    experts = [_experts(path, path.stat().st_mtime_ns) for path in files]
    epochs = tuple(tuple(len(one) - 1 for one in some) for some in experts)
    return Buffers(files, epochs, sha256(canonical([sha256_file(path) for path in files]))[:16])


@functools.lru_cache(maxsize=1)
def _experts(path: Path, changed: int) -> list[list[list[Tensor]]]:
    """Every expert of a file, each tensor with numbers of its own in it."""
    found = _mapped(path)
    if not isinstance(found, list) or not found:
        raise StillroomError(f"{path}: holds a {type(found).__name__}, no list of experts")
    for i, expert in enumerate(found):
        if not isinstance(expert, list) or not 0 < len(expert) <= MOST:
            raise StillroomError(f"{path}: expert {i} is no list of snapshots")
    if sum(map(len, found)) > MOST:
        raise StillroomError(f"{path}: holds more than {MOST} snapshots; not read")
    nbytes = 0
    for i, expert in enumerate(found):
        for snapshot in expert:
            usual = (
                isinstance(snapshot, list)
                and len(snapshot) <= MOST
                and all(
                    isinstance(t, Tensor) and t.is_floating_point() and plain(t) for t in snapshot
                )
            )
            if not usual:
                raise StillroomError(f"{path}: a snapshot of expert {i} is no list of tensors")
            nbytes += sum(t.numel() * t.element_size() for t in snapshot)
            if nbytes > path.stat().st_size:
                raise StillroomError(f"{path}: repeats its tensors; save clones of them")
    return found


@dataclass(frozen=True)
class GivenExpert(Stage):
    """Expert number `index` of the replay buffers whose digest is `buffers`, for some data.

    `source` is where they lie now, if they do. Kept are the epochs from `since` to `upto` and the
    last one, which is tested.
    """

    kind: ClassVar[str] = "expert"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/buffers.py",
        "artefacts/experts.py",
        "artefacts/originals.py",
        "artefacts/given.py",
        "nets/inner.py",
    )

    buffers: str
    bench: dict[str, Any]
    arch: Arch
    index: int
    since: int
    upto: int
    store: Path = field(compare=False)
    source: Buffers | None = field(default=None, compare=False)

    def identity(self) -> dict[str, Any]:
        """What others trained is what it is: its digest, and the data that it is tested on."""
        return {
            "buffers": self.buffers,
            "data": self.bench["digest"],
            "arch": self.arch.name,
            "index": self.index,
            "epochs": [self.since, self.upto],
        }

    def about(self) -> str:
        """What it is, for a listing."""
        return f"{self.arch.name} {self.index} of {self.bench['name']}, given by {self.buffers}"

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Copy the expert out of its file and test it.

        Raises: StillroomError if the files are not there, or hold another network or NaN.
        """
        if self.source is None:
            raise StillroomError(
                f"the store has no experts {self.buffers} of {self.arch.name}; name the folder of "
                "their replay buffers again"
            )
        began = time.monotonic()
        rt = dataclasses.replace(rt, numerics="float32", compile=False)
        bench = open_bench(self.bench, self.store, rt)
        nets = nets_for(self.arch, bench, rt).make(1, 0, "expert")
        if nets.member(0)[1]:
            raise StillroomError(
                f"replay buffers hold parameters alone, and {self.arch.name} has statistics of "
                "BatchNorm too: nobody can tell how good such an expert is; train experts here"
            )
        params = nets.member(0)[0]
        snapshots = self.source.find(self.index)
        epochs = sorted(
            {*range(self.since, min(self.upto, len(snapshots) - 1) + 1), len(snapshots) - 1}
        )
        rows = new_rows(out / TRAJECTORY, (len(epochs), sum(t.numel() for t in params.values())))
        for i, epoch in enumerate(epochs):
            where = f"{self.source.files[0].parent}: expert {self.index} at epoch {epoch}"
            rows[i] = _row(snapshots[epoch], params, where)
        rows.flush()
        accuracy, moved = _test(nets, rows[-1], self, rt)
        write_json(out / TOLD, {"accuracy": accuracy, "moved": moved, "epochs": epochs})
        write_json(out / "timing.json", {"seconds": time.monotonic() - began})

    def nbytes(self) -> int:
        """Bytes of what will be kept, of an expert that has not been."""
        assert self.source is not None
        snapshots = self.source.find(self.index)
        kept = min(self.upto, len(snapshots) - 1) - self.since + 2
        return 4 * kept * sum(t.numel() for t in snapshots[0])

    def load(self, folder: Path) -> Trajectory:
        """The way it went; rows stay on disk until they are asked for."""
        told = read_json(folder / "0000" / TOLD)
        epochs = tuple(int(epoch) for epoch in told["epochs"])
        rows = read_rows(folder, len(epochs))
        moved = tuple(Moved(*one) for one in told["moved"])
        return Trajectory(self.arch, epochs, rows, float(told["accuracy"]), 0.0, moved)


def _mapped(path: Path) -> Any:
    """What a file holds, its numbers mapped from where they lie."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        raise StillroomError(
            f"{path}: no whole file of torch.save since PyTorch 1.6; load and save it again there"
        ) from None
    if not stored:
        raise StillroomError(f"{path}: its members are not as torch.save writes them; not read")
    refuse_hungry(path, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has many, and its own text advises to run the code
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise StillroomError(
            f"{path}: damaged, or holds more than lists of tensors"
            f"{f' ({named[1]})' if named else ''}; to read it could run its code"
        ) from None


def _row(snapshot: list[Tensor], params: dict[str, Tensor], which: str) -> np.ndarray[Any, Any]:
    """Parameters float32 [P] in the order of the network."""
    shapes = [tuple(t.shape) for t in snapshot]
    wanted = [tuple(t.shape) for t in params.values()]
    if shapes != wanted:
        pairs = zip(params, wanted, shapes, strict=False)
        odd = next((f"{n} is {list(a)} and there {list(b)}" for n, a, b in pairs if a != b), None)
        raise StillroomError(
            f"{which} is of another network or other classes: "
            f"{odd or f'{len(wanted)} tensors here, {len(shapes)} there'}"
        )
    row = torch.cat([t.detach().float().flatten() for t in snapshot])
    if not bool(row.isfinite().all()):
        raise StillroomError(f"{which}: holds NaN or infinite values")
    return row.numpy()


def _test(
    nets: Ensemble, row: np.ndarray[Any, Any], stage: GivenExpert, rt: Runtime
) -> tuple[float, list[tuple[Any, ...]]]:
    """How good its end is, and which classes it knows in another order."""
    put(torch.from_numpy(np.array(row)), nets.member(0)[0])
    accuracy, moved = tested(nets, open_bench(stage.bench, stage.store, rt), rt)
    return accuracy, [dataclasses.astuple(m) for m in moved]
