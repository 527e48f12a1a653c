"""What a process opens once and keeps for all shards: a benchmark, a factory of networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.data.benchmarks import Benchmark, reopen
from stillroom.data.source import ImageSource
from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Backend, Nets
from stillroom.nets.sources import Images
from stillroom.nets.zoo import Arch, of_library
from stillroom.runtime import Runtime, refuse_too_large
from stillroom.types import Preprocess

COPIES = 3  # of all weights, that training holds: themselves, their gradients, their momentum


def open_bench(described: dict[str, Any], store: Path, rt: Runtime) -> Benchmark:
    """The benchmark from the store's decoded cache, its images on the device where they fit."""
    name = ("bench", described["digest"], str(rt.device))
    cache = rt.session.cache
    if name not in cache:
        bench = reopen(described, store)
        on_device = {part: getattr(bench, part).on(rt.device) for part in ("train", "test")}
        cache[name] = dataclasses.replace(bench, **on_device)
    bench = cache[name]
    assert isinstance(bench, Benchmark)
    return bench


def nets_for(arch: Arch, bench: Benchmark, rt: Runtime, backend: Backend = "loop") -> Nets:
    """The factory of networks for a benchmark; kept by the session with its compiled code.

    One a runtime: device, numerics, threads and compilation are all settled in what is kept.

    Raises: StillroomError if the memory cannot hold one network while it is trained.
    """
    cache = rt.session.cache
    name = ("nets", arch.name, len(bench.classes), bench.channels, bench.size, rt, backend)
    if name not in cache:
        _refuse_if_too_large(arch, bench, rt)
        cache[name] = Nets(arch, len(bench.classes), bench.channels, bench.size, rt, backend)
    nets = cache[name]
    assert isinstance(nets, Nets)
    return nets


def real_images(source: ImageSource, preprocess: Preprocess, size: int, rt: Runtime) -> Images:
    """Real images in a network space: that of a set which is judged, or of the benchmark."""

    def take(rows: Tensor) -> Tensor:
        return preprocess.apply(source.take(rows, rt.device)).to(rt.dtype)

    return Images(take, source.labels.to(rt.device), size)


def _refuse_if_too_large(arch: Arch, bench: Benchmark, rt: Runtime) -> None:
    """Refuse a network of the zoo by its name, which a foreign set may hold, before it is built."""
    # A user's own factory is left alone: it may not work without values, or may keep and hand out
    # again what it made here; and no foreign set can name one.
    if arch.factory is not None:
        return
    try:
        with torch.device("meta"):
            net = arch.build(len(bench.classes), bench.channels, bench.size)
    except StillroomError:
        if not of_library(arch.name):
            raise
        return  # some of theirs need values while they are made; what else is wrong is said then
    need = COPIES * rt.dtype.itemsize * sum(p.numel() for p in net.parameters())
    what, remedy = f"arch={arch.name} needs at least", "name a smaller network with --arch"
    refuse_too_large(need, what, rt.device, remedy)
