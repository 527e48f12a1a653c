"""`RealFeatures`: what an original model sees in some real images, which sets are compared with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.opened import open_bench
from stillroom.artefacts.originals import Original, OriginalModel, opened
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import Benchmark
from stillroom.files import write_atomic
from stillroom.rng import rng
from stillroom.runtime import Runtime

FILE = "features.safetensors"
TOGETHER = 512  # images of one forward


@dataclass(frozen=True)
class RealFeatures(Stage):
    """Features [N,D] float32 of up to `per_class` real training images a class, class by class."""

    kind: ClassVar[str] = "features"
    sources: ClassVar[tuple[str, ...]] = (*COMMON, "artefacts/features.py")

    model: Original
    per_class: int

    def identity(self) -> dict[str, Any]:
        """The model's key covers data, network and weights."""
        return {"model": self.model.key(), "per_class": self.per_class}

    def about(self) -> str:
        """What it is, for a listing."""
        return f"real images seen by {self.model.about()}"

    def needs(self) -> tuple[Stage, ...]:
        """The model."""
        return (self.model,)

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """One pass over the images."""
        stage, rt = self.model, dataclasses.replace(rt, compile=False)
        bench = open_bench(stage.bench, stage.store, rt)
        model: OriginalModel = stage.load(Store(stage.store).folder(stage.key()))
        nets = opened(model, bench, rt)
        seen = []
        for rows in real_rows(bench, self.per_class).split(TOGETHER):
            images = model.space(bench).apply(bench.train.take(rows, rt.device)).to(rt.dtype)
            seen.append(nets.features(images)[0].float().cpu())
        write_atomic(out / FILE, save({"features": torch.cat(seen)}))

    def load(self, folder: Path) -> Tensor:
        """The features."""
        return load_file(folder / "0000" / FILE)["features"]


def real_rows(bench: Benchmark, per_class: int) -> Tensor:
    """Up to `per_class` real training images of every class, drawn by key: int64 [N]."""
    picked = []
    for c in range(len(bench.classes)):
        rows = bench.train.rows_of(c)
        order = torch.randperm(len(rows), generator=rng(0, "assess", c))
        picked.append(rows[order[:per_class]])
    return torch.cat(picked)
