"""One part of a submission, read by a process of its own that may hold and do very little.

`python -m stillroom.challenge.reader SUBMISSION PART OUT` says that it is ready, writes the part as
float32 into OUT, a safetensors file, and prints one line of JSON: {"notes": [...]}, {"reason":
"..."} why it is not read, or {"fault": "..."} where the machine, not the submission, is in the way.
A submission is hostile: sizes are judged before memory is taken, nothing is unpickled but tensors,
no member of an archive is ever written to disk.
"""

from __future__ import annotations

import ctypes
import io
import json
import lzma
import os
import resource
import signal
import stat
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.challenge.parts import PARTS, Part
from stillroom.errors import StillroomError
from stillroom.files import read_limited

if TYPE_CHECKING:
    from torch import Tensor

MOST_TOLD = 300  # letters of a reason, and of a note
MEMORY = 1536 * 2**20  # bytes beyond what the process holds when it begins to read
CPU_SECONDS = 120
READY = "ready"  # what is printed first: from here on it is the submission's doing
PR_SET_PDEATHSIG = 1  # of prctl(2)
MOST_MEMBERS = 10**4  # of an archive
MAX_ARCHIVE = 2**30  # bytes
WIDE = 20.0  # deviations from zero that no image has
BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)
SUBFOLDERS = ("", "res")  # of a submission: its own, or as the platform of the challenge had it


def main() -> None:
    """Read the part that the command line names."""
    submission, name, out = sys.argv[1:4]
    import torch  # before memory is limited: its libraries are large and not the submission's

    torch.set_num_threads(1)
    _limit()
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    part = PARTS[name]
    hungry = {"reason": f"{part.file}: needs more memory than a submission may take"}
    try:
        images, notes = read(Path(submission), part)
        told = _written(images, notes, Path(out))
    except StillroomError as error:
        told = {"reason": str(error)[:MOST_TOLD]}
    except MemoryError:
        told = hungry
    except RuntimeError as error:
        if "alloc" not in str(error) and "memory" not in str(error):
            raise
        told = hungry
    sys.stdout.write(json.dumps(told) + "\n")


def _written(images: Tensor, notes: list[str], out: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({"images": images}, out)
    except (OSError, SafetensorError) as error:
        return {"fault": f"what was read cannot be written ({str(error)[:100]})"}
    return {"notes": notes}


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if _linux() else 0
    if pages:
        held = pages * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    most = max(part.limit for part in PARTS.values())
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _linux():  # whoever stops the evaluator stops its readers
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _linux() -> bool:
    return Path("/proc/self/statm").exists()


def read(submission: Path, part: Part) -> tuple[Tensor, list[str]]:
    """The part's images float32 [N,3,H,W], and what a submitter should hear of them.

    Raises: StillroomError with the reason why it is not taken.
    """
    found, size = _tensor(submission, part)
    images = checked(found, part)
    if size < found.numel() * found.element_size():  # such as a tensor of whatever memory held
        raise StillroomError(
            f"{part.file}: has {size} bytes, fewer than the numbers of its tensor; save it by "
            "torch.save, uncompressed"
        )
    return images, notes_on(images, part)


def checked(found: Any, part: Part) -> Tensor:
    """The images of a part, float32 [N,3,H,W].

    Raises: StillroomError if it is not one plain tensor of finite floats of the part's shape.
    """
    import torch

    from stillroom.nets.zoo.weights import plain

    if type(found) not in (torch.Tensor, torch.nn.Parameter) or getattr(found, "__dict__", {}):
        raise StillroomError(
            f"{part.file}: holds a {type(found).__name__}; save one plain tensor, "
            f"torch.save(images, {part.file!r})"
        )
    if tuple(found.shape) != part.shape:
        told = str(list(found.shape))[:80]
        raise StillroomError(
            f"{part.file}: shape {told}, not {list(part.shape)}: ten images of each of "
            f"{part.classes} classes, class after class"
        )
    if not found.is_floating_point():
        raise StillroomError(
            f"{part.file}: {found.dtype} images; normalised floats are needed (see `pack`)"
        )
    if not plain(found):
        raise StillroomError(
            f"{part.file}: a sparse, quantised or expanded tensor; save images.to_dense() or, of "
            "an expanded one, images.clone()"
        )
    images: Tensor = found.detach().float().contiguous()
    if not bool(torch.isfinite(images).all()):
        raise StillroomError(f"{part.file}: holds NaN or infinite pixels")
    return images


def notes_on(images: Tensor, part: Part) -> list[str]:
    """What looks wrong and is taken all the same."""
    low, high = float(images.min()), float(images.max())
    found = []
    if low >= 0 and high <= 1:
        found.append(
            "this looks un-normalised: all values lie from 0 to 1; subtract the mean and divide by "
            f"the standard deviation of {part.benchmark} before you distil"
        )
    elif max(-low, high) > WIDE:
        found.append(f"values reach from {low:.3g} to {high:.3g}: are these pixels of 0 to 255?")
    flat = images.flatten(1)
    same = len(flat) - len(flat.unique(dim=0))
    if same:
        found.append(f"{same} of {len(flat)} images are there twice")
    return found


def _tensor(submission: Path, part: Part) -> tuple[Any, int]:
    """What the part's file holds, and how many bytes it has."""
    from stillroom.nets.zoo.weights import read_checkpoint

    data = _bytes(submission, part)
    return read_checkpoint(Path(part.file), data, part.limit), len(data)


def _bytes(submission: Path, part: Part) -> bytes:
    """The content of the part's file, in a folder or in an archive."""
    if submission.is_dir():
        for below in SUBFOLDERS:
            path = submission / below / part.file
            if path.is_symlink() or (below and path.parent.is_symlink()):
                linked = part.file if path.is_symlink() else f"{part.file}: {below}"
                raise StillroomError(f"{linked}: is a symbolic link; put the file itself there")
            if path.exists():
                why = (
                    f"more than a tensor {list(part.shape)} needs; not read (of a slice of a "
                    "larger tensor save images.clone())"
                )
                return read_limited(path, part.limit, why)
        raise StillroomError(f"{part.file}: not there; a submission is a folder with {_both()}")
    return _member(read_limited(submission, MAX_ARCHIVE, "not read"), part)


def _member(archive: bytes, part: Part) -> bytes:
    """The part's file out of a zip, inflated no farther than it may be large."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = opened.infolist()
            if len(members) > MOST_MEMBERS:
                raise StillroomError(f"the archive holds {len(members)} members; two are needed")
            mine = [m for m in members if m.filename.rpartition("/")[2] == part.file]
            mine = [m for m in mine if "__MACOSX" not in m.filename.split("/")]
            if len(mine) != 1:
                raise StillroomError(
                    f"{part.file}: is {len(mine)} times in the archive; it must hold {_both()}"
                )
            (member,) = mine
            _refuse_odd(member)
            if member.file_size > part.limit:
                raise StillroomError(
                    f"{part.file}: inflates to {member.file_size // 2**20} MiB, where a tensor "
                    f"{list(part.shape)} has {part.limit // 2**20}; not read"
                )
            with opened.open(member) as stream:
                data = stream.read(part.limit + 1)
    except StillroomError:
        raise
    except (zlib.error, lzma.LZMAError, *BROKEN) as error:
        told = f"not a readable zip archive ({str(error)[:100]})"
        raise StillroomError(f"{part.file}: {told}") from None
    if len(data) > part.limit:
        raise StillroomError(f"{part.file}: inflates to more than its header says; not read")
    return data


def _refuse_odd(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise StillroomError(f"{name[:80]!r}: a member that leads out of the archive; not read")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise StillroomError(f"{name[:80]!r}: is a symbolic link; put the file itself there")


def _both() -> str:
    return " and ".join(part.file for part in PARTS.values())


if __name__ == "__main__":
    main()
