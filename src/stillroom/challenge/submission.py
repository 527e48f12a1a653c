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

from safetensors.torch import load_file
from torch import Tensor

from stillroom.challenge.parts import PARTS, Part
from stillroom.errors import StillroomError

SECONDS = 180.0  # that a part may take to be read
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

    Raises: StillroomError if there is neither a folder nor a file.
    """
    if not (folder.is_dir() or folder.is_file()):
        raise StillroomError(f"{folder}: neither a folder nor a zip archive")
    return [read_part(folder, part, seconds) for part in PARTS.values()]


def read_part(folder: Path, part: Part, seconds: float = SECONDS) -> Submitted:
    """One part, read in a process that is killed where it takes too long or too much."""
    with tempfile.TemporaryDirectory(prefix="stillroom-") as scratch:
        out = Path(scratch) / "part.safetensors"
        line = [sys.executable, "-m", "stillroom.challenge.reader"]
        line += [str(folder.absolute()), part.name, str(out)]
        # What the submission could set a trap with is not in the environment of its reader.
        env = {k: v for k, v in os.environ.items() if k in _NEEDED}
        process = subprocess.Popen(
            line, stdin=-3, stdout=-1, stderr=-1, cwd=scratch, env=env, start_new_session=True
        )
        try:
            said, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Submitted(part, None, f"{part.file}: took longer than {seconds:.0f} s to read")
        return _understood(part, process.returncode, said, complaint, out)


_NEEDED = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT")


def _understood(part: Part, code: int, said: bytes, complaint: bytes, out: Path) -> Submitted:
    if code != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        why = f"signal {-code}" if code < 0 else last[0][:200]
        return Submitted(part, None, f"{part.file}: its reader was stopped ({why})")
    told = json.loads(said[:MOST_SAID])
    if "reason" in told:
        return Submitted(part, None, str(told["reason"])[:300])
    images = load_file(out)["images"]
    return Submitted(part, images, notes=tuple(str(note)[:300] for note in told["notes"]))
