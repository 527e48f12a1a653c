"""`Original`: the stage that trains one network on the original data, an "original model".

Source: "Which Assessment Should be Prioritized in Dataset Distillation?" (a seed of the project),
whose distillation is guided, and judged, by models of the original data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.training import Work, pixels
from stillroom.data.benchmarks import Benchmark
from stillroom.files import read_json, write_atomic
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.zoo import Arch, resolve
from stillroom.runtime import Numerics, Runtime
from stillroom.types import Preprocess

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class OriginalModel:
    """A trained network: weights and buffers by name; accuracy on the real test images.

    `raw`: it takes pixels in [0, 1], not images in network space. `curve`: (epochs, accuracy).
    """

    arch: Arch
    weights: dict[str, Tensor]
    raw: bool
    accuracy: float
    curve: tuple[tuple[int, float], ...]
    seconds: float

    def put_into(self, nets: Ensemble) -> None:
        """Give an ensemble of one network of this architecture these weights."""
        for part in nets.member(0):
            for name, tensor in part.items():
                tensor.copy_(self.weights[name])

    def space(self, bench: Benchmark) -> Preprocess:
        """From pixels in [0, 1] to what the model takes."""
        return pixels(bench) if self.raw else bench.preprocess


@dataclass(frozen=True)
class Original(Stage):
    """One original model: number `index` of its architecture and schooling on a benchmark."""

    kind: ClassVar[str] = "original"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/originals.py",
        "artefacts/schooling.py",
        "artefacts/training.py",
    )

    schooling: Schooling
    bench: dict[str, Any]
    arch: Arch
    index: int
    numerics: Numerics
    store: Path = field(compare=False)

    def identity(self) -> dict[str, Any]:
        """Everything that determines the weights."""
        return {
            "schooling": self.schooling.model_dump(mode="json"),
            "data": self.bench["digest"],
            "arch": self.arch.name,
            "index": self.index,
            "numerics": self.numerics,
        }

    def about(self) -> str:
        """What it is, for a listing."""
        return (
            f"{self.arch.name} {self.index} of {self.bench['name']}, {self.schooling.passes} epochs"
        )

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Train the network, from the snapshot of a killed run if there is one.

        Raises: StillroomError if it diverges.
        """
        work = Work(self, out, rt.sized(self.flops(rt)))
        work.restore()
        work.run()
        stored = {name: t.cpu().contiguous() for name, t in work.weights().items()}
        write_atomic(out / WEIGHTS, save(stored))
        work.tell()

    def flops(self, rt: Runtime) -> float:
        """Operations of its training and of its tests: a static count."""
        bench, s = open_bench(self.bench, self.store, rt), self.schooling
        tests = len(bench.test) * (s.passes if s.select == "best" else 1)
        images = 3.0 * s.passes * s.looks * len(bench.train) + tests
        return images * nets_for(self.arch, bench, rt).forward_flops()

    def load(self, folder: Path) -> OriginalModel:
        """The trained network."""
        part = folder / "0000"
        told = read_json(part / "original.json")
        return OriginalModel(
            arch=self.arch,
            weights=load_file(part / WEIGHTS),
            raw=self.schooling.raw_pixels,
            accuracy=float(told["accuracy"]),
            curve=tuple((int(epoch), float(value)) for epoch, value in told["curve"]),
            seconds=float(read_json(part / "timing.json")["seconds"]),
        )


def pool_of(
    names: Sequence[str],
    num: int,
    schooling: Schooling,
    bench: dict[str, Any],
    arch: Arch,
    store: Path,
) -> list[Original]:
    """`num` models of every named network, "auto" being `arch`: network by network."""
    chosen = [arch if name == "auto" else resolve(name) for name in names]
    return [
        Original(schooling, bench, one, i, "float32", store) for one in chosen for i in range(num)
    ]


def opened(model: OriginalModel, bench: Benchmark, rt: Runtime) -> Ensemble:
    """The model as an ensemble of one."""
    nets = nets_for(model.arch, bench, rt).make(1, 0, "original")
    model.put_into(nets)
    return nets
