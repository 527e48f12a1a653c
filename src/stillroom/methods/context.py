"""`RunContext`: the real data, networks and draws of one chunk, all of them keyed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stillroom.artefacts.opened import nets_for
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError, TooFewImagesError
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.zoo import Arch, canonical
from stillroom.rng import rng
from stillroom.runtime import Runtime

GROUP_BYTES = 2**30  # activations that one group of classes may hold; static, so that keys agree


def classes_together(each: int) -> int:
    """How many classes share a forward if one of them needs `each` bytes."""
    return max(1, GROUP_BYTES // each)


@dataclass
class RunContext:
    """See `base.Context` for what each part promises."""

    bench: Benchmark
    ipc: int
    seed: int
    rt: Runtime
    networks: Nets
    chunk: int = 0
    artefacts: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0  # outer steps that the run has in all
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        return self.rt.device

    def rng(self, *key: str | int) -> torch.Generator:
        """A fresh CPU generator for (seed, chunk, *key)."""
        return rng(self.seed, "distil", self.chunk, *key)

    def share(self, n: int) -> range:
        """This rank's part of n independent terms."""
        return range(self.rt.rank, n, self.rt.world)

    def real(self, c: int, n: int, *key: str | int) -> Tensor:
        """[min(n, size of class c),ch,H,W] real images of class c, drawn by key, preprocessed."""
        return self.take(self.real_rows(c, *key)[:n])

    def real_rows(self, c: int, *key: str | int) -> Tensor:
        """int64 [size of class c]: its training images in an order drawn by key."""
        rows = self.bench.train.rows_of(c)
        return rows[torch.randperm(len(rows), generator=self.rng("real", *key))]

    def take(self, rows: Tensor) -> Tensor:
        """[len(rows),ch,H,W] training images, preprocessed."""
        pixels = self.bench.train.take(rows, self.device)
        return self.bench.preprocess.apply(pixels).to(self.rt.dtype)

    def real_images(self, rows: Tensor) -> Tensor:
        """A distinct real image of its class for every synthetic row; independent of chunks."""
        picked = []
        for c in (rows // self.ipc).unique().tolist():
            candidates = self.bench.train.rows_of(c)
            if len(candidates) < self.ipc:
                raise TooFewImagesError(
                    f"ipc={self.ipc} but class {self.bench.classes[c]!r} has {len(candidates)} "
                    "training images; lower --ipc or drop the class"
                )
            order = torch.randperm(len(candidates), generator=rng(self.seed, "start", c))
            within = rows[rows // self.ipc == c] - c * self.ipc
            picked.append(candidates[order[within]])
        return self.take(torch.cat(picked))

    def nets(self, k: int, *key: str | int, arch: str | None = None) -> Ensemble:
        """K freshly initialised networks, keyed; of another zoo architecture if `arch` is given."""
        networks = self.networks
        if arch is not None:  # a name of the zoo: code of a user's own would be in no key
            networks = nets_for(Arch(canonical(arch)), self.bench, self.rt)
        return networks.make(k, self.seed, "distil", self.chunk, *key)

    def groups(self, per_class: int) -> list[list[int]]:
        """This rank's classes in groups that share one forward of `per_class` images each.

        Networks with BatchNorm take statistics over all classes (the reference's branch for names
        with "BN"), so they get one group. Otherwise the size follows from a static estimate.
        """
        classes = list(self.share(len(self.bench.classes)))
        if self.networks.has_batchnorm():
            if self.rt.world > 1:
                raise StillroomError(
                    "a network with BatchNorm takes statistics over all classes, which cannot be "
                    "split over ranks; use an instance-norm network or one rank"
                )
            return [classes]
        pixels = self.bench.channels * self.bench.size**2 * 4
        real = per_class * 4 * pixels  # images, their augmentation and its temporaries
        size = classes_together(real + self.ipc * self.networks.activation_bytes())
        return [classes[i : i + size] for i in range(0, len(classes), size)]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned when `name` was first asked for; never part of a snapshot."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def log(self, **metrics: float | Tensor) -> None:
        """Numbers for `metrics.jsonl`, beside the loss."""
        self.metrics.update(metrics)
