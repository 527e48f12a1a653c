"""`Statistics`: what the layers of a trained network are given by the real images, in one pass.

Source: G-VBSM (arXiv:2311.17950) and EDC (arXiv:2404.13733); definitions in `nets/hooks.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.originals import Original, OriginalModel, opened
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.store import Store
from stillroom.data.augment import apply, draw, parse
from stillroom.data.benchmarks import Benchmark
from stillroom.files import read_json, write_atomic, write_json
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.hooks import Layer, Stats, Sums, layers, patch_side
from stillroom.rng import rng
from stillroom.runtime import Runtime

FILE = "statistics.safetensors"
ABOUT = "statistics.json"
SUMS = "sums.safetensors"
MOST_SHARDS = 8  # each leaves sums as large as the result
DEFINITION = 1  # raised when a name comes to mean something else


@dataclass(frozen=True)
class Observed:
    """Statistics of every layer of one network, in the order of its modules.

    tensors: "<number of the layer>.<statistic>", see `Sums.statistics`. For a norm "running.mean"
    and "running.var" are those that the network itself keeps. repairs: of statistics that others
    released, in words.
    """

    layers: tuple[Layer, ...]
    patch: int
    tensors: dict[str, Tensor]
    repairs: tuple[str, ...] = ()

    def of(self, layer: int) -> Stats:
        """The statistics of a layer, by name."""
        head = f"{layer:03d}."
        return {k.removeprefix(head): v for k, v in self.tensors.items() if k.startswith(head)}


@dataclass(frozen=True)
class Statistics(Stage):
    """Statistics of all training images, and where `by_class` of every class.

    `batch` images at a time, in an order drawn by key, under `augment`; of what is stored only
    "batch_var" depends on the batch. Shards are parts of that order.
    """

    kind: ClassVar[str] = "statistics"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/statistics.py",
        "nets/hooks.py",
    )

    model: Original
    by_class: bool = True
    batch: int = 64
    augment: str = "none"

    def identity(self) -> dict[str, Any]:
        """The model's key covers data, network and weights."""
        return {
            "definition": DEFINITION,
            "model": self.model.key(),
            "by_class": self.by_class,
            "batch": self.batch,
            "augment": self.augment,
        }

    def about(self) -> str:
        """What it is, for a listing."""
        return f"real images in the layers of {self.model.about()}"

    def needs(self) -> tuple[Stage, ...]:
        """The network."""
        return (self.model,)

    def shards(self) -> int:
        """Equal parts of the batches."""
        images = int(self.model.bench["counts"]["train"])
        return min(MOST_SHARDS, -(-images // self.batch))

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Sum up the statistics of one part of the images."""
        rt = dataclasses.replace(rt, compile=False)
        bench = open_bench(self.model.bench, self.model.store, rt)
        model: OriginalModel = self.model.load(Store(self.model.store).folder(self.model.key()))
        nets = opened(model, bench, rt)
        order = torch.randperm(len(bench.train), generator=rng(0, "statistics"))
        batches = list(enumerate(order.split(self.batch)))[shard :: self.shards()]
        watched = layers(nets.nets.skeleton)
        sums = {layer.name: Sums(len(bench.classes)) for layer in watched}
        rt.session.begin("statistics", len(batches), 0)
        for done, (number, rows) in enumerate(batches):
            self._add(nets, sums, watched, self._images(model, bench, rows, number, rt), rt)
            rt.session.update(done + 1)
            rt.session.check()
        rt.session.end()
        tensors = {
            f"{i:03d}.{name}": value.cpu()
            for i, layer in enumerate(watched)
            for name, value in sums[layer.name].tensors.items()
        }
        write_atomic(out / SUMS, save(tensors))
        told = {"layers": [[x.name, x.kind] for x in watched], "patch": patch_side(bench.size)}
        write_json(out / "layers.json", told)

    def flops(self, rt: Runtime) -> float:
        """Operations of the pass: a static count."""
        bench = open_bench(self.model.bench, self.model.store, rt)
        return float(len(bench.train)) * nets_for(self.model.arch, bench, rt).forward_flops()

    def memory(self, rt: Runtime) -> int:
        """Bytes that the pass holds: sums by class in float64, and a batch on its way."""
        bench = open_bench(self.model.bench, self.model.store, rt)
        nets = nets_for(self.model.arch, bench, rt)
        side, values = patch_side(bench.size), 0
        for layer, shape in given_shapes(nets.make(1, 0, "probe")):
            _, channels, height, width = shape
            cells = -(-height // side) * -(-width // side) if layer.kind == "conv" else 0
            values += channels + cells
        sums = 3 * 8 * values * len(bench.classes)  # means, variances, squared means
        image = 4 * bench.channels * bench.size**2
        return sums + self.batch * (2 * image + 4 * nets.largest_activation())

    def finish(self, parts: list[Path], folder: Path) -> None:
        """Join the sums of all parts into statistics."""
        if (folder / ABOUT).is_file():
            return  # killed below, after that was written, when sums may be gone already
        told = read_json(parts[0] / "layers.json")
        shards = [load_file(part / SUMS) for part in parts]
        weights = self.model.load(Store(self.model.store).folder(self.model.key())).weights
        tensors: dict[str, Tensor] = {}
        for i, (name, kind) in enumerate(told["layers"]):
            head = f"{i:03d}."
            sums = Sums(len(self.model.bench["classes"]))
            for shard in shards:
                mine = {k.removeprefix(head): v for k, v in shard.items() if k.startswith(head)}
                sums.merge(mine)
            found = sums.statistics(self.by_class)
            if kind == "norm":
                found |= {f"running.{n}": weights[f"{name}.running_{n}"] for n in ("mean", "var")}
            tensors |= {head + k: v.float().contiguous() for k, v in found.items()}
        write_atomic(folder / FILE, save(tensors))
        manifest = {
            **told,
            **self.identity(),
            "arch": self.model.arch.name,
            "data": self.model.bench["digest"],
            "images": int(self.model.bench["counts"]["train"]),
        }
        write_json(folder / ABOUT, manifest)
        for part in parts:
            (part / SUMS).unlink()

    def load(self, folder: Path) -> Observed:
        """The statistics."""
        return read_observed(folder)

    def _images(
        self, model: OriginalModel, bench: Benchmark, rows: Tensor, number: int, rt: Runtime
    ) -> tuple[Tensor, Tensor]:
        x = model.space(bench).apply(bench.train.take(rows, rt.device)).to(rt.dtype)
        gen = rng(0, "statistics augment", number)
        x = apply(x, draw(parse(self.augment), len(x), bench.size, gen))
        return x, bench.train.labels[rows].to(rt.device)

    def _add(
        self,
        nets: Ensemble,
        sums: dict[str, Sums],
        watched: list[Layer],
        batch: tuple[Tensor, Tensor],
        rt: Runtime,
    ) -> None:
        x, labels = batch
        side = patch_side(x.shape[-1])

        def adding(layer: Layer) -> Callable[[Tensor], None]:
            patch = side if layer.kind == "conv" else None
            return lambda given: sums[layer.name].add(given, labels, patch)

        with torch.no_grad(), rt.autocast():
            nets.observed(x, {layer.name: adding(layer) for layer in watched})


def read_observed(folder: Path) -> Observed:
    """The statistics of an artefact, whoever collected them."""
    told = read_json(folder / ABOUT)
    found = tuple(Layer(name, kind) for name, kind in told["layers"])
    repairs = tuple(told.get("repairs", ()))
    return Observed(found, int(told["patch"]), load_file(folder / FILE), repairs)


def given_shapes(nets: Ensemble) -> list[tuple[Layer, torch.Size]]:
    """The layers of a network, and the shape [1,C,H,W] of what each is given for one image."""
    made, watched = nets.nets, layers(nets.nets.skeleton)
    x = torch.zeros(1, made.channels, made.size, made.size, device=made.rt.device)
    with torch.no_grad():
        looks = {layer.name: lambda given: given.shape for layer in watched}
        _, seen = nets.observed(x.to(made.rt.dtype), looks)
    return [(layer, seen[layer.name]) for layer in watched]
