"""`Original`: the stage that trains one network on the original data, an "original model".

Source: "Which Assessment Should be Prioritized in Dataset Distillation?" (a seed of the project),
whose distillation is guided, and judged, by models of the original data.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.given import DIGEST, Moved, given_weights, other_order
from stillroom.artefacts.opened import nets_for, open_bench, real_images
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.training import TOLD, Work, pixels, training_memory
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.files import read_json, write_atomic, write_json
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.train import predict
from stillroom.nets.zoo import Arch, resolve, split_weights
from stillroom.runtime import Numerics, Runtime
from stillroom.types import Preprocess

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class OriginalModel:
    """A trained network: weights and buffers by name; accuracy on the real test images.

    `raw`: it takes pixels in [0, 1], not images in network space. `curve`: (epochs, accuracy).
    `name`: as the stage's. `moved`: of given weights, classes that they know by other numbers.
    """

    arch: Arch
    weights: dict[str, Tensor]
    raw: bool
    accuracy: float
    curve: tuple[tuple[int, float], ...]
    seconds: float
    moved: tuple[Moved, ...] = ()
    name: str = ""

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
    """One original model: number `index` of its architecture and schooling on a benchmark.

    Or, where `weights` is their digest, weights that a user brought (`artefacts/given.py`): they
    are tested on the benchmark, and nothing is trained.
    """

    kind: ClassVar[str] = "original"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/originals.py",
        "artefacts/given.py",
        "artefacts/schooling.py",
        "artefacts/training.py",
    )

    schooling: Schooling
    bench: dict[str, Any]
    arch: Arch
    index: int
    store: Path = field(compare=False)
    weights: str = ""

    def __post_init__(self) -> None:
        if self.schooling.order.scores != "none":
            raise StillroomError(
                f"order.scores={self.schooling.order.scores}: ordered data are of experts; an "
                "original model sees all images in every epoch"
            )

    @property
    def numerics(self) -> Numerics:
        """Those of its schooling; given weights are tested in float32."""
        return "float32" if self.weights else self.schooling.numerics

    @property
    def name(self) -> str:
        """The network, and whose weights it has if they were given."""
        return f"{self.arch.name}={self.weights}" if self.weights else self.arch.name

    def identity(self) -> dict[str, Any]:
        """Everything that determines the weights."""
        common = {
            "data": self.bench["digest"],
            "arch": self.arch.name,
            "numerics": self.numerics,
        }
        if self.weights:
            return {**common, "weights": self.weights}
        schooling = self.schooling.model_dump(mode="json")
        return {**common, "schooling": schooling, "index": self.index}

    def about(self) -> str:
        """What it is, for a listing."""
        if self.weights:
            return f"{self.name}, given, on {self.bench['name']}"
        return (
            f"{self.arch.name} {self.index} of {self.bench['name']}, {self.schooling.passes} epochs"
        )

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Train the network, from the snapshot of a killed run if there is one; test a given one.

        Raises: StillroomError if it diverges, or given weights are not there any more.
        """
        rt = rt.under(self.numerics)  # whatever it is made for
        if self.weights:
            _test_given(self, out, rt.sized(self.flops(rt)))
            return
        work = Work(self, out, rt.sized(self.flops(rt)))
        work.restore()
        work.run()
        stored = {name: t.cpu().contiguous() for name, t in work.weights().items()}
        write_atomic(out / WEIGHTS, save(stored))
        work.tell()

    def flops(self, rt: Runtime) -> float:
        """Operations of its training, if any, and of its tests: a static count."""
        bench, s = open_bench(self.bench, self.store, rt), self.schooling
        tests = len(bench.test) * (s.passes if s.select == "best" and not self.weights else 1)
        images = tests + (0.0 if self.weights else 3.0 * s.passes * s.looks * len(bench.train))
        return images * nets_for(self.arch, bench, rt).forward_flops()

    def memory(self, rt: Runtime) -> int:
        """Bytes that its training holds; 0 of given weights, which are only tested."""
        return 0 if self.weights else training_memory(self, self.flops(rt), rt)

    def load(self, folder: Path) -> OriginalModel:
        """The trained network."""
        part = folder / "0000"
        told = read_json(part / TOLD)
        return OriginalModel(
            arch=self.arch,
            weights=load_file(part / WEIGHTS),
            raw=self.schooling.raw_pixels and not self.weights,
            accuracy=float(told["accuracy"]),
            curve=tuple((int(epoch), float(value)) for epoch, value in told["curve"]),
            seconds=float(read_json(part / "timing.json")["seconds"]),
            moved=tuple(Moved(*one) for one in told.get("moved", ())),
            name=self.name,
        )


def pool_of(
    names: Sequence[str],
    num: int,
    schooling: Schooling,
    bench: dict[str, Any],
    arch: Arch,
    store: Path,
) -> list[Original]:
    """`num` models of every named network, "auto" being `arch`: network by network.

    Of a network whose weights are given, by their digest, there is one.
    Raises: StillroomError if more are asked for, or one network goes by two names.
    """
    found: list[Original] = []
    known: dict[tuple[str, str], str] = {}
    for name in names:
        one, weights = network_of(name, arch), split_weights(name)[1]
        if (first := known.setdefault((one.name, weights), name)) != name or names.count(name) > 1:
            raise StillroomError(f"{first} and {name} are one network; name it once")
        if weights and not DIGEST.fullmatch(weights):
            raise StillroomError(f"{name[:80]}: weights go by their digest here (artefacts/given)")
        if weights and num > 1:
            raise StillroomError(
                f"{name} is one model and {num} of each network are asked for; ask for one"
            )
        found += [Original(schooling, bench, one, i, store, weights) for i in range(num)]
    return found


def network_of(name: str, arch: Arch) -> Arch:
    """The network of a name of a pool, with or without weights; "auto" is `arch`."""
    network = split_weights(name)[0]
    return arch if network == "auto" else resolve(network)


def _test_given(stage: Original, out: Path, rt: Runtime) -> None:
    """Write given weights with their accuracy on the test images, and in which order classes are.

    A wrong order of classes is the usual error with weights of others, and nothing else shows it.
    """
    began = time.monotonic()
    bench = open_bench(stage.bench, stage.store, rt)
    nets = nets_for(stage.arch, bench, rt).make(1, 0, "original")
    own = {name: t for part in nets.member(0) for name, t in part.items()}
    weights = given_weights(stage.name, stage.weights, own, stage.store)
    for name, tensor in own.items():
        tensor.copy_(weights[name])
    accuracy, order = tested(nets, bench, rt)
    moved = [dataclasses.astuple(m) for m in order]
    write_atomic(out / WEIGHTS, save(weights))
    told = {"accuracy": accuracy, "curve": [[0, accuracy]], "moved": moved}
    write_json(out / TOLD, told)
    write_json(out / "timing.json", {"seconds": time.monotonic() - began})


def tested(nets: Ensemble, bench: Benchmark, rt: Runtime) -> tuple[float, list[Moved]]:
    """The share of test images that network 0 has right, and what classes it has exchanged."""
    tests = real_images(bench.test, bench.preprocess, bench.size, rt)
    predicted, labels = predict(nets, tests)[0], tests.labels.cpu()
    accuracy = float((predicted == labels).double().mean())
    return accuracy, other_order(predicted, labels, len(bench.classes))


def opened(model: OriginalModel, bench: Benchmark, rt: Runtime) -> Ensemble:
    """The model as an ensemble of one."""
    nets = nets_for(model.arch, bench, rt).make(1, 0, "original")
    model.put_into(nets)
    return nets
