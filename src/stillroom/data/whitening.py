"""ZCA fits kept in the store: one of Tiny-ImageNet takes minutes and is wanted by every command."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from stillroom.data.preprocess import ZCA_EPS, fit_zca
from stillroom.data.source import ImageSource
from stillroom.errors import StillroomError
from stillroom.files import (
    canonical,
    fresh_folder,
    locked,
    read_json,
    sha256,
    write_json,
)
from stillroom.types import Zca

_LOG = logging.getLogger(__name__)


def whitening(train: ImageSource, identity: str, store: Path | None) -> Zca:
    """Return the ZCA fit of `train`, from `<store>/zca-<key16>/` if it is there and sound.

    `identity` is a digest that tells these training images from any others. Without a store the
    fit is made anew.
    """
    if store is None:
        return fit_zca(train.images)
    key = sha256(canonical(["zca", identity, ZCA_EPS]))[:16]
    folder = store / f"zca-{key}"
    with locked(store / ".locks" / folder.name):
        if folder.is_dir():
            try:
                return _read(folder)
            except (StillroomError, SafetensorError, KeyError, TypeError, OSError) as error:
                _LOG.warning("%s: fitted again (%s)", folder, error)
        zca = fit_zca(train.images)
        with fresh_folder(folder) as temporary:
            blob = save({"mean": zca.mean, "transform": zca.transform})
            (temporary / "zca.safetensors").write_bytes(blob)
            write_json(temporary / "meta.json", {"sha256": sha256(blob)})
        return zca


def fit_damage(folder: Path) -> str:
    """What is wrong with a kept fit, or an empty string."""
    try:
        _read(folder)
    except (StillroomError, SafetensorError, KeyError, TypeError, OSError):
        return "the kept ZCA fit is missing, cut off or altered"
    return ""


def _read(folder: Path) -> Zca:
    blob = (folder / "zca.safetensors").read_bytes()
    if sha256(blob) != read_json(folder / "meta.json")["sha256"]:
        raise StillroomError("its SHA-256 does not match")
    tensors = load(blob)
    return Zca(tensors["mean"], tensors["transform"])
