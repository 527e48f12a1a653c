"""Images that distillations start from (`--init-from`), kept in the store under their digest."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stillroom.files import fresh_folder, sha256, write_atomic

FILE = "images.safetensors"


def keep_start(images: Tensor, root: Path) -> tuple[Path, str]:
    """Bring images float32 [N,ch,H,W] into the store; returns (file, digest)."""
    digest = _digest(images)
    folder = root / f"start-{digest}"
    if start_damage(folder):
        with fresh_folder(folder) as fresh:
            write_atomic(fresh / FILE, save({"images": images.contiguous()}))
    return folder / FILE, digest


def start_damage(folder: Path) -> str:
    """What is wrong with `<store>/start-<digest>/`, or an empty string."""
    try:
        images = load((folder / FILE).read_bytes())["images"]
    except (OSError, SafetensorError, KeyError):
        return f"{FILE} is missing or not whole"
    return "" if folder.name == f"start-{_digest(images)}" else f"{FILE} was altered or damaged"


def _digest(images: Tensor) -> str:
    return sha256(images.contiguous().numpy().tobytes())[:16]
