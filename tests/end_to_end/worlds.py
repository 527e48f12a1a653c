"""A small world for hostile input: a store, a finished set, and ways to spoil copies of both."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save

from stillroom.cli import run
from stillroom.files import canonical, sha256

Meta = dict[str, Any]
Tensors = dict[str, torch.Tensor]
TINY = ["--arch", "convnet1-w8", "--threads", "1"]


def png(seed: int, size: int = 8) -> bytes:
    """A random picture, encoded."""
    array = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below `root` with size and time of change."""
    return {
        p.relative_to(root).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(root.rglob("*"))
        if ".locks" not in p.parts
    }


class World:
    """One test's folder; `base` is a finished set of digits, `store` the store it lies in."""

    def __init__(self, tmp: Path, base: Path, store: Path) -> None:
        self.tmp, self.base, self.store = tmp, base, store
        self.out = tmp / "out"

    @classmethod
    def first(cls, root: Path) -> tuple[Path, Path]:
        """Make the base set and its store below `root`."""
        store, base = root / "store", root / "base"
        flags = ["--data", "digits", "--ipc", "1", "--steps", "3", "--keep", "2", *TINY]
        flags += ["--store", str(store), "--quiet", "--out", str(base)]
        assert run(["distill", "dm", *flags]) == 0
        return base, store

    def own_store(self) -> Path:
        """A copy of the store, to be damaged."""
        self.store = Path(shutil.copytree(self.store, self.tmp / "store"))
        return self.store

    def artefact(self) -> Path:
        """The base set's folder in the store."""
        meta = json.loads((self.base / "meta.json").read_text())
        return self.store / str(meta["provenance"]["key"])

    def dm(self, *flags: str, data: str = "digits", ipc: str = "1") -> list[str]:
        """`distill dm`; later flags win over the defaults given here."""
        given = {f for f in flags if f.startswith("--")}
        line = ["distill", "dm", "--quiet", "--data", data]
        pairs = [("--ipc", ipc), ("--steps", "3"), ("--out", str(self.out))]
        pairs += [("--store", str(self.store)), ("--arch", "convnet1-w8"), ("--threads", "1")]
        for name, value in pairs:
            line += [] if name in given else [name, value]
        return [*line, *flags]

    def recipe(self, text: str | bytes, *overrides: str, name: str = "mine.yaml") -> list[str]:
        """`distill FILE overrides` for a recipe of this text."""
        path = self.tmp / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        line = ["distill", str(path), *overrides, "--quiet", "--threads", "1"]
        return [*line, "--out", str(self.out), "--store", str(self.store)]

    def evaluate(self, source: object, *flags: str) -> list[str]:
        """`evaluate SOURCE` with one student."""
        seeds = [] if "--seeds" in flags else ["--seeds", "1"]
        store = [] if "--store" in flags else ["--store", str(self.store)]
        return ["evaluate", str(source), "--quiet", "--threads", "1", *seeds, *store, *flags]

    def folder(self, counts: Mapping[str, int], name: str = "photos", size: int = 8) -> Path:
        """Class folders of random pictures."""
        root, seed = self.tmp / name, 0
        root.mkdir(parents=True, exist_ok=True)
        for part, count in counts.items():
            (root / part).mkdir(parents=True)
            for i in range(count):
                (root / part / f"{i}.png").write_bytes(png(seed, size))
                seed += 1
        return root

    def spoilt(self, file: str, change: Callable[[bytes], bytes]) -> Path:
        """A copy of the set with one file changed."""
        copy = Path(shutil.copytree(self.base, self.tmp / "set"))
        path = copy / file
        path.write_bytes(change(path.read_bytes()))
        return copy

    def forged(
        self,
        change: Callable[[Meta], object] = lambda meta: None,
        tensors: Callable[[Tensors], object] = lambda t: None,
    ) -> Path:
        """A copy of the set with other metadata or tensors, and every digest right."""
        copy = Path(shutil.copytree(self.base, self.tmp / "set"))
        meta: Meta = json.loads((copy / "meta.json").read_text())
        meta.pop("digest")
        held = load_file(copy / "data.safetensors")
        tensors(held)
        for name, value in held.items():
            raw = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            shape = {"dtype": str(value.dtype)[6:], "shape": list(value.shape)}
            meta["tensors"][name] = {**shape, "sha256": sha256(raw)}
        change(meta)
        digest = sha256(json.dumps(meta)) if "NaN" in json.dumps(meta) else sha256(canonical(meta))
        (copy / "meta.json").write_text(json.dumps(meta | {"digest": digest}))
        (copy / "data.safetensors").write_bytes(save(held))
        return copy


def setting(*path: Any) -> Callable[[Meta], None]:
    """A change of metadata: keys down to a value, the last of `path`."""

    def change(meta: Meta) -> None:
        level: Any = meta
        for key in path[:-2]:
            level = level[key]
        level[path[-2]] = path[-1]

    return change


def flip(at: int) -> Callable[[bytes], bytes]:
    """Flip one bit of a file."""

    def change(blob: bytes) -> bytes:
        index = at if at >= 0 else len(blob) + at
        return blob[:index] + bytes([blob[index] ^ 1]) + blob[index + 1 :]

    return change
