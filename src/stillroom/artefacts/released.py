"""`ReleasedStatistics`: layer statistics that others released, checked, and repaired by name.

EDC's files (arXiv:2404.13733) have defects; their numbers are those of the specification of the
decoupled methods, 9.1 and 9.2:

- swapped-patch (4): of classes, means and variances of patches stand under each other's names;
- doubled (5): statistics of all data were added to themselves;
- colliding (28): networks of one class share their files, so that some are of another network;
- variance (6): variances are averaged over batches (all data) or inside one image (classes).

The first three are found by what must hold between the files, or named; the last is estimated where
it is named. "none" takes everything as it is.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor

from stillroom.artefacts.given import given_weights
from stillroom.artefacts.npz_tree import Place, Tree
from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.originals import Original
from stillroom.artefacts.released_names import Repair, released_name
from stillroom.artefacts.released_repairs import Raw, repaired
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.statistics import (
    ABOUT,
    DEFINITION,
    FILE,
    Observed,
    given_shapes,
    read_observed,
)
from stillroom.errors import StillroomError
from stillroom.files import write_atomic, write_json
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.hooks import Kind, Stats, patch_side
from stillroom.runtime import Runtime
from stillroom.session import Session


@dataclass(frozen=True)
class Wanted:
    """A layer of the network: its name here and there, its channels, and of convolutions cells."""

    name: str
    there: str
    kind: Kind
    channels: int
    cells: int | None

    def sizes(self) -> dict[str, int]:
        """How long its vectors are."""
        found = {"mean": self.channels, "var": self.channels}
        if self.cells is not None:
            found |= {"patch_mean": self.cells, "patch_var": self.cells}
        return found


@dataclass(frozen=True)
class ReleasedStatistics(Stage):
    """What the layers of a network with given weights are given by the real images, out of a tree.

    `tree` is its digest, `source` where it lies now, if it does; `repair` what is asked for.
    """

    kind: ClassVar[str] = "statistics"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/released.py",
        "artefacts/released_names.py",
        "artefacts/released_repairs.py",
        "artefacts/npz_tree.py",
        "artefacts/given.py",
        "nets/hooks.py",
    )

    model: Original
    tree: str
    repair: tuple[Repair, ...] = ()
    by_class: bool = True
    source: Path | None = field(default=None, compare=False)

    def identity(self) -> dict[str, Any]:
        """The model's key covers data, network and weights."""
        return {
            "definition": DEFINITION,
            "model": self.model.key(),
            "tree": self.tree,
            "repair": sorted(set(self.repair)),
            "by_class": self.by_class,
        }

    def about(self) -> str:
        """What it is, for a listing."""
        return f"released statistics {self.tree} of {self.model.about()}"

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Read the tree and write what is in it, repaired.

        Raises: StillroomError if it is not there or another, or of another network, other weights
        or classes, or damaged in a way that no repair mends.
        """
        if self.source is None:
            raise StillroomError(
                f"the store has no released statistics {self.tree} for {self.model.name}; name "
                "their folder or zip"
            )
        rt = dataclasses.replace(rt, numerics="float32", compile=False)
        bench = open_bench(self.model.bench, self.model.store, rt)
        nets = nets_for(self.model.arch, bench, rt).make(1, 0, "original")
        own = {name: t for part in nets.member(0) for name, t in part.items()}
        weights = given_weights(self.model.name, self.model.weights, own, self.model.store)
        wanted = self._wanted(nets)
        with Tree.open(self.source) as tree:
            if tree.digest() != self.tree:
                raise StillroomError(f"{self.source}: changed while it was read; try again")
            net, others = self._network(tree, wanted)
            raw = list(self._all(tree, net, wanted, rt.session))
        running = [_running(weights, layer) for layer in wanted]
        done = repaired(raw, running, self.repair, others, bench.size, f"{self.source}: {net}")
        tensors = {
            f"{i:03d}.{name}": value.float().contiguous()
            for i, stats in enumerate(done.stats)
            for name, value in stats.items()
        }
        write_atomic(out / FILE, save(tensors))
        told = {
            **self.identity(),
            "layers": [[layer.name, layer.kind] for layer in wanted],
            "patch": patch_side(bench.size),
            "arch": self.model.name,
            "data": self.model.bench["digest"],
            "network": net,
            "repairs": list(done.repairs),
        }
        write_json(out / ABOUT, told)

    def finish(self, parts: list[Path], folder: Path) -> None:
        """Put what the one part wrote where statistics lie."""
        for name in (FILE, ABOUT):
            if (parts[0] / name).is_file():  # else a killed run has moved it
                os.replace(parts[0] / name, folder / name)

    def load(self, folder: Path) -> Observed:
        """The statistics."""
        return read_observed(folder)

    def _wanted(self, nets: Ensemble) -> list[Wanted]:
        """The layers of the network, in its order, with the sizes of what they are given."""
        side, found = patch_side(nets.nets.size), []
        for layer, shape in given_shapes(nets):
            _, channels, height, width = shape
            cells = -(-height // side) * -(-width // side) if layer.kind == "conv" else None
            there = released_name(self.model.arch.name, layer.name)
            found.append(Wanted(layer.name, there, layer.kind, channels, cells))
        return found

    def _network(self, tree: Tree, wanted: Sequence[Wanted]) -> tuple[str, int]:
        """What the tree calls the network, and how many layers of others have the same name.

        Of names with all its layers the one with fewest others: a ResNet-18's are all in a
        ResNet-50 too.
        """
        held: dict[str, set[tuple[Kind, str]]] = {}
        for place in tree.files:
            held.setdefault(place.net, set()).add((place.kind, place.layer))
        need = {("conv", layer.there) for layer in wanted if layer.kind == "conv"}
        fits = [net for net, some in held.items() if need <= some]
        tail = self.model.arch.name.rpartition("/")[2]
        fits = [net for net in fits if net.endswith(f"_{tail}")] or fits
        own = {(layer.kind, layer.there) for layer in wanted}
        fits = [n for n in fits if len(held[n] - own) == min(len(held[m] - own) for m in fits)]
        if len(fits) == 1:
            return fits[0], len(held[fits[0]] - own)
        if fits:
            raise StillroomError(
                f"{tree.source}: {' and '.join(sorted(fits)[:2])} both have the layers of "
                f"{self.model.arch.name}; leave one of them in the tree"
            )
        near = max(sorted(held), key=lambda net: len(need & held[net]))
        lacks = min(layer for _, layer in need - held[near])
        raise StillroomError(
            f"{tree.source}: holds no network with the layers of {self.model.arch.name} (of "
            f"{', '.join(sorted(held)[:8])} {near} is nearest and has no {lacks})"
        )

    def _all(
        self, tree: Tree, net: str, wanted: Sequence[Wanted], session: Session
    ) -> Iterator[Raw]:
        session.begin("released statistics", len(wanted))
        for done, layer in enumerate(wanted):
            yield self._read(tree, net, layer)
            session.update(done + 1)
            session.check()
        session.end()

    def _read(self, tree: Tree, net: str, layer: Wanted) -> Raw:
        """What the tree holds of a layer."""
        whole = each = None
        if layer.kind == "conv":
            whole = self._vectors(tree, Place("conv", net, layer.there), layer)
        if self.by_class:
            classes = len(self.model.bench["classes"])
            past = Place(layer.kind, net, layer.there, classes)
            if past in tree.files:
                raise StillroomError(
                    f"{tree.source}: has class_{classes}, and {self.model.bench['name']} only "
                    f"{classes} classes; name the data that it is of"
                )
            found = [
                self._vectors(tree, Place(layer.kind, net, layer.there, c), layer)
                for c in range(classes)
            ]
            each = {name: torch.stack([one[name] for one in found]) for name in layer.sizes()}
        return Raw(layer.name, layer.kind, whole, each)

    def _vectors(self, tree: Tree, place: Place, layer: Wanted) -> Stats:
        if place not in tree.files:
            what = "of all data" if place.of is None else f"of class_{place.of}"
            remedy = "" if place.of is None else "; without classes: --targets whole or local"
            raise StillroomError(
                f"{tree.source}: has no statistics {what} for {place.net}={place.layer}{remedy}"
            )
        found = tree.vectors(place)
        for name, size in layer.sizes().items():
            if len(found[name]) != size:
                raise StillroomError(
                    f"{tree.source}: {place.net}={place.layer} has {len(found[name])} values of "
                    f"{name} and {self.model.arch.name} {size}: networks of one class share these "
                    "files, and this one is of another, or the images are of another size"
                )
        return {name: torch.from_numpy(vector) for name, vector in found.items()}


def _running(weights: dict[str, Tensor], layer: Wanted) -> Stats:
    if layer.kind != "norm":
        return {}
    return {n: weights[f"{layer.name}.running_{n}"] for n in ("mean", "var")}
