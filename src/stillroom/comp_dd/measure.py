"""`Complexities`: the stage that measures the complexity of a data set's images by a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.originals import Original, OriginalModel, opened
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.store import Store
from stillroom.comp_dd.complexity import THRESHOLD, complexity
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError, suggest
from stillroom.files import write_atomic
from stillroom.nets.maps import Cam, activation_maps, deepest, map_layers
from stillroom.rng import rng
from stillroom.runtime import Runtime

FILE = "complexity.safetensors"
TOGETHER = 64  # images of one look
Of = Literal["label", "predicted"]


@dataclass(frozen=True)
class Complexities(Stage):
    """Complexity of training images: at most `each` of every class, drawn by key.

    `layer` "auto": the deepest map of 4 x 4 or more. `of`: the class that a map explains, the
    image's own or, as the published script has it, the one that the network predicts.
    """

    kind: ClassVar[str] = "complexity"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "comp_dd/complexity.py",
        "comp_dd/measure.py",
        "nets/maps.py",
    )

    model: Original
    layer: str = "auto"
    cam: Cam = "grad-cam"
    of: Of = "label"
    threshold: float = THRESHOLD
    each: int = 200

    def identity(self) -> dict[str, Any]:
        """The model's key covers data, network and weights."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "model"}
        return {"model": self.model.key(), **own}

    def about(self) -> str:
        """What it is, for a listing."""
        return f"complexity by {self.model.about()}"

    def in_words(self) -> str:
        """What decides the numbers, for a note."""
        at = f"active from {self.threshold:g} on, {self.each} images a class at most"
        return f"{self.cam} of the {self.of} class in layer {self.layer}, {at}"

    def needs(self) -> tuple[Stage, ...]:
        """The network."""
        return (self.model,)

    def rows(self, bench: Benchmark) -> Tensor:
        """The images int64 [M], class after class."""
        found = []
        for c in range(len(bench.classes)):
            mine = bench.train.rows_of(c)
            order = torch.randperm(len(mine), generator=rng(0, "complexity", c))
            found.append(mine[order[: self.each].sort().values])
        return torch.cat(found)

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Look at every image."""
        rt = dataclasses.replace(rt, compile=False)
        bench = open_bench(self.model.bench, self.model.store, rt)
        rows = self.rows(bench)
        parts = len(rows.split(TOGETHER))
        rt.session.begin("complexity", parts, 0)
        found = []
        for done, maps in enumerate(self.maps(bench, rows, rt)):
            found.append(complexity(maps, self.threshold).cpu())
            rt.session.update(done + 1)
            rt.session.check()
        rt.session.end()
        tensors = {"rows": rows, "complexity": torch.cat(found).contiguous()}
        write_atomic(out / FILE, save(tensors))

    def maps_of(self, bench: Benchmark, places: Tensor, rt: Runtime) -> Tensor:
        """The maps [P,H,W] that measured the images at some places of `rows`, once more.

        With all that were shown together with them: noise is drawn for a batch.
        """
        seen, found = self.rows(bench), {}
        for part in sorted({place // TOGETHER for place in places.tolist()}):
            some = seen[part * TOGETHER : (part + 1) * TOGETHER]
            for offset, one in enumerate(next(self.maps(bench, some, rt, part))):
                found[part * TOGETHER + offset] = one.cpu()
        return torch.stack([found[place] for place in places.tolist()]).float()

    def maps(self, bench: Benchmark, rows: Tensor, rt: Runtime, first: int = 0) -> Iterator[Tensor]:
        """Maps [B,H,W] in [0, 1] of training images, batch by batch, noise keyed by its number."""
        model: OriginalModel = self.model.load(Store(self.model.store).folder(self.model.key()))
        nets = opened(model, bench, rt)
        layer = deepest(nets) if self.layer == "auto" else self.layer
        for done, some in enumerate(rows.split(TOGETHER)):
            images = model.space(bench).apply(bench.train.take(some, rt.device)).to(rt.dtype)
            of_class = bench.train.labels[some].to(rt.device)
            if self.of == "predicted":
                with torch.no_grad():
                    of_class = nets.logits(images)[0].argmax(1)
            yield activation_maps(nets, layer, images, of_class, self.cam, key=first + done)

    def load(self, folder: Path) -> tuple[Tensor, Tensor]:
        """Rows int64 [M] of the training images, and their complexity float64 [M]."""
        found = load_file(folder / "0000" / FILE)
        return found["rows"], found["complexity"]


def layer_of(layer: str, model: Original, bench: Benchmark, rt: Runtime) -> str:
    """The layer of a network that is asked, "auto" being its deepest map of 4 x 4 or more.

    Raises: StillroomError if it is no map of the network, before that is trained.
    """
    nets = nets_for(model.arch, bench, rt).make(1, 0, "plan")
    there = map_layers(nets)
    if not there:
        raise StillroomError(f"{model.arch.name} has no layer whose output is a map; ask another")
    if layer not in ("auto", *there):
        raise StillroomError(
            f"--layer {layer[:60]!r} is no map of {model.arch.name}, whose maps are "
            f"{', '.join(there)}{suggest(layer, there)}"
        )
    return deepest(nets) if layer == "auto" else layer
