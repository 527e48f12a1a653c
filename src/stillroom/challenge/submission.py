"""A submission from outside: each part read by a process of its own, with limits of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stillroom.challenge.parts import PARTS, Part
from stillroom.challenge.reader import MOST_TOLD, READY
from stillroom.errors import StillroomError

SECONDS = 900.0  # that a part may wait for anything; of work a reader may do 120 s
MOST_SAID = 10_000  # letters that a reader may print


@dataclass(frozen=True)
class Submitted:
    """A part as it was read: images float32 [N,3,H,W], or the reason why there are none."""

    part: Part
    images: Tensor | None
    reason: str = ""
    notes: tuple[str, ...] = ()


def read_submission(folder: Path, seconds: float = SECONDS) -> list[Submitted]:
    """Both parts of a folder or zip; what is wrong with one leaves the other alone.

    Raises: StillroomError if there is neither a folder nor a file, or no reader can work here.
    """
    if folder.is_symlink() and folder.is_file():
        raise StillroomError(f"{folder}: is a symbolic link; give the archive itself")
    if not (folder.is_dir() or folder.is_file()):
        raise StillroomError(f"{folder}: neither a folder nor a zip archive")
    return [read_part(folder, part, seconds) for part in PARTS.values()]


def read_part(folder: Path, part: Part, seconds: float = SECONDS) -> Submitted:
    """One part, read in a process that is killed where it takes too long or too much.

    Raises: StillroomError if the machine, not the submission, is in the way.
    """
    with tempfile.TemporaryDirectory(prefix="stillroom-") as scratch:
        out = Path(scratch) / "part.safetensors"
        line = [sys.executable, "-m", "stillroom.challenge.reader"]
        line += [str(folder.absolute()), part.name, str(out)]
        # What the submission could set a trap with is not in the environment of its reader.
        env = {k: v for k, v in os.environ.items() if k in _NEEDED}
        env["PYTHONPATH"] = os.pathsep.join(_own_code(env.get("PYTHONPATH", "")))
        process = subprocess.Popen(
            line, stdin=-3, stdout=-1, stderr=-1, cwd=scratch, env=env, start_new_session=True
        )
        try:
            said, complaint = process.communicate(timeout=seconds)
        except BaseException as error:  # of a Ctrl-C it would not hear: its session is its own
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Submitted(part, None, f"{part.file}: took longer than {seconds:.0f} s to read")
        return _understood(part, process.returncode, said, complaint, out)


_NEEDED = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT")


def _own_code(paths: str) -> list[str]:
    """Where the reader finds this very package first; it works in a folder of its own."""
    package = Path(__file__).resolve().parents[2]
    return [str(package), *(str(Path(one).absolute()) for one in paths.split(os.pathsep) if one)]


def _understood(part: Part, code: int, said: bytes, complaint: bytes, out: Path) -> Submitted:
    """What a reader's last words come to; before it is ready nothing is the submission's fault."""
    ready, _, answer = said[:MOST_SAID].partition(b"\n")
    last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
    why = f"signal {-code}" if code < 0 else last[0][:200]
    if ready.decode(errors="replace") != READY:
        raise StillroomError(f"no reader of submissions starts on this machine ({_clean(why)})")
    if code != 0:
        return Submitted(part, None, _clean(f"{part.file}: its reader was stopped ({why})"))
    try:
        told = json.loads(answer)
        if "fault" in told:
            raise StillroomError(
                f"{part.file}: {_clean(told['fault'])}; make room and run it again"
            )
        if "reason" in told:
            return Submitted(part, None, _clean(told["reason"]))
        images = load_file(out)["images"]
        if tuple(images.shape) == part.shape and images.dtype == torch.float32:
            return Submitted(part, images, notes=tuple(_clean(note) for note in told["notes"]))
    except StillroomError:
        raise
    except (ValueError, KeyError, TypeError, OSError, SafetensorError):
        pass
    return Submitted(part, None, f"{part.file}: its reader said nothing that can be used")


def _clean(text: Any) -> str:
    """One line that a terminal or a page can show."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:MOST_TOLD])
