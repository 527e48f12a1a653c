"""One part of a submission, read by a process of its own that may hold and do very little.

`python -m stillroom.challenge.reader SUBMISSION PART OUT` writes the part as float32 into OUT, a
safetensors file, and prints one line of JSON: {"notes": [...]}, or {"reason": "..."} why it is not
read. A submission is hostile: sizes are judged before memory is taken, nothing is unpickled but
tensors, no member of an archive is ever written to disk.
"""

from __future__ import annotations

import io
import json
import os
import resource
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

from stillroom.challenge.parts import PARTS, Part
from stillroom.errors import StillroomError
from stillroom.files import read_limited

MEMORY = 1536 * 2**20  # bytes beyond what the process holds when it begins to read
CPU_SECONDS = 120
MOST_MEMBERS = 10**4  # of an archive
MAX_ARCHIVE = 2**30  # bytes
WIDE = 20.0  # deviations from zero that no image has
SUBFOLDERS = ("", "res")  # of a submission: its own, or as the platform of the challenge had it


def main() -> None:
    """Read the part that the command line names."""
    submission, name, out = sys.argv[1:4]
    import torch  # before memory is limited: its libraries are large and not the submission's

    torch.set_num_threads(1)
    _limit()
    try:
        told: dict[str, Any] = {"notes": read(Path(submission), PARTS[name], Path(out))}
    except StillroomError as error:
        told = {"reason": str(error)}
    except MemoryError:
        told = {"reason": "needs more memory than a submission may take"}
    except RuntimeError as error:
        if "alloc" not in str(error) and "memory" not in str(error):
            raise
        told = {"reason": "needs more memory than a submission may take"}
    sys.stdout.write(json.dumps(told) + "\n")


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if _linux() else 0
    if pages:
        held = pages * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    most = max(part.limit for part in PARTS.values())
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _linux() -> bool:
    return Path("/proc/self/statm").exists()


def read(submission: Path, part: Part, out: Path) -> list[str]:
    """Write the part's images float32 [N,3,H,W]; returns what a submitter should hear of them.

    Raises: StillroomError with the reason why it is not taken.
    """
    from safetensors.torch import save_file

    images = checked(_tensor(submission, part), part)
    save_file({"images": images}, out)
    return notes_on(images, part)


def checked(found: Any, part: Part) -> Any:
    """The images of a part, float32 [N,3,H,W].

    Raises: StillroomError if it is not one plain tensor of finite floats of the part's shape.
    """
    import torch

    from stillroom.nets.zoo.weights import plain

    if not isinstance(found, torch.Tensor):
        raise StillroomError(
            f"{part.file}: holds a {type(found).__name__}; save one plain tensor, "
            f"torch.save(images, {part.file!r})"
        )
    if tuple(found.shape) != part.shape:
        raise StillroomError(
            f"{part.file}: shape {list(found.shape)}, not {list(part.shape)}: ten images of each "
            f"of {part.classes} classes, class after class"
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
    images = found.detach().float().contiguous()
    if not bool(torch.isfinite(images).all()):
        raise StillroomError(f"{part.file}: holds NaN or infinite pixels")
    return images


def notes_on(images: Any, part: Part) -> list[str]:
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


def _tensor(submission: Path, part: Part) -> Any:
    from stillroom.nets.zoo.weights import read_checkpoint

    name, data = _bytes(submission, part)
    return read_checkpoint(Path(name), data, part.limit)


def _bytes(submission: Path, part: Part) -> tuple[str, bytes]:
    """The name and the content of the part's file, in a folder or in an archive."""
    if submission.is_dir():
        for below in SUBFOLDERS:
            path = submission / below / part.file
            if path.is_symlink():
                raise StillroomError(f"{part.file}: is a symbolic link; put the file itself there")
            if path.exists():
                why = (
                    f"more than a tensor {list(part.shape)} needs; not read (of a slice of a "
                    "larger tensor save images.clone())"
                )
                return part.file, read_limited(path, part.limit, why)
        raise StillroomError(f"{part.file}: not there; a submission is a folder with {_both()}")
    if submission.is_symlink():
        raise StillroomError(f"{submission.name}: is a symbolic link; give the archive itself")
    return part.file, _member(read_limited(submission, MAX_ARCHIVE, "not read"), part)


def _member(archive: bytes, part: Part) -> bytes:
    """The part's file out of a zip, inflated no farther than it may be large."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = opened.infolist()
            if len(members) > MOST_MEMBERS:
                raise StillroomError(f"the archive holds {len(members)} members; two are needed")
            mine = [m for m in members if m.filename.rpartition("/")[2] == part.file]
            mine = [m for m in mine if not m.filename.startswith("__MACOSX/")]
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
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise StillroomError(f"not a readable zip archive ({str(error)[:100]})") from None
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
