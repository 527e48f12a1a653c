"""Snapshots of unfinished work: tensors and a header in one file, digested, tied to conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256, write_atomic
from stillroom.runtime import Runtime

SNAPSHOT = "snapshot.safetensors"
SECONDS = 30.0  # between two; when to save never changes what is computed


def save_snapshot(
    folder: Path, tensors: dict[str, Tensor], header: dict[str, Any], rt: Runtime
) -> None:
    """Write `tensors` (of any device) and a JSON `header`, whole or not at all."""
    stored = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header = {**header, "conditions": rt.conditions()}
    header["digest"] = _digest(stored, header)
    folder.mkdir(parents=True, exist_ok=True)
    blob = save(stored, metadata={"stillroom": canonical(header)})
    write_atomic(folder / SNAPSHOT, blob)


def read_snapshot(folder: Path, rt: Runtime) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(header, tensors on the CPU) of the snapshot in `folder`; None if there is none.

    Going on under other conditions, where `--allow-drift` lets it, leaves a file `drift`.
    Raises: StillroomError if it is damaged, or was made on another device, torch or thread count.
    """
    path = folder / SNAPSHOT
    if not path.is_file():
        return None
    header, tensors = _read(path)
    before, now = header["conditions"], rt.conditions()
    changed = [f"{k} {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
    if changed and not rt.allow_drift:
        raise StillroomError(
            f"the snapshot of unfinished {folder.parent.name} was made under other "
            f"conditions ({'; '.join(changed)}); restore them, or go on with --allow-drift "
            "(then the bytes differ from an unbroken run)"
        )
    if changed:
        rt.session.say(f"resuming under other conditions: {'; '.join(changed)}")
        (folder / "drift").write_text("; ".join(changed) + "\n", encoding="utf-8")
    return header, tensors


def _digest(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    parts: list[Any] = [
        [name, sha256(t.flatten().view(torch.uint8).numpy().tobytes())]
        for name, t in sorted(tensors.items())
    ]
    return sha256(canonical([*parts, header]))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as archive:
            header: dict[str, Any] = json.loads((archive.metadata() or {})["stillroom"])
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        if header.pop("digest") == _digest(tensors, header):
            return header, tensors
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise StillroomError(f"{path}: damaged; remove the unfinished run with: stillroom store gc")
