"""`evaluate --save-models`: weights of students, copied out of the store under readable names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import StillroomError
from stillroom.evaluation.score import Score
from stillroom.files import read_json, sha256, sha256_file, write_atomic
from stillroom.nets.zoo import Arch
from stillroom.run.publish import safe_name
from stillroom.run.rows import Row


def file_name(row: Row, arch: Arch, seed: int) -> str:
    """What the files of a student are called, but for their endings."""
    return f"{safe_name(row.name)}-{safe_name(arch.name)}-seed{seed}"


def refuse_others(folder: Path, wanted: Sequence[tuple[Row, Score]]) -> None:
    """Refuse, before anybody is trained, to write where other students lie.

    Raises: StillroomError naming the file and the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise StillroomError(f"--save-models {folder} is a file; name a folder")
    for row, stage in wanted:
        for seed in stage.seeds:
            weights, about = _targets(folder, file_name(row, stage.arch, seed))
            if about.exists() and _key(about) != stage.key():
                raise _other(about)
            if weights.exists() and not about.exists():
                raise _other(weights)


def copy_student(folder: Path, name: str, score: dict[str, Any], force: bool) -> None:
    """Copy one student's weights and what tells of them, each whole or not at all.

    What tells of them goes first: the same command knows by it that the weights are its own.
    Raises: StillroomError if other content lies there, without `force`.
    """
    targets = reversed(_targets(folder, name))
    for source, target in zip(reversed(score["files"]), targets, strict=True):
        data = source.read_bytes()
        if target.exists():
            if sha256_file(target) == sha256(data):
                continue
            if not force:
                raise _other(target)
        write_atomic(target, data)


def _targets(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.safetensors", folder / f"{name}.json"


def _key(about: Path) -> object:
    try:
        told = read_json(about)
    except StillroomError:
        return None
    return told.get("key") if isinstance(told, dict) else None


def _other(path: Path) -> StillroomError:
    return StillroomError(
        f"{path} holds another student; name another folder with --save-models, or overwrite it "
        "with --force"
    )
