"""What a process opens once and keeps for all shards: a benchmark, a factory of networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stillroom.data.benchmarks import Benchmark, reopen
from stillroom.nets.ensemble import Backend, Nets
from stillroom.nets.zoo import Arch
from stillroom.runtime import Runtime


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
    """The factory of networks for a benchmark; kept by the session with its compiled code."""
    cache = rt.session.cache
    name = ("nets", arch.name, len(bench.classes), bench.channels, bench.size, rt.numerics, backend)
    if name not in cache:
        cache[name] = Nets(arch, len(bench.classes), bench.channels, bench.size, rt, backend)
    nets = cache[name]
    assert isinstance(nets, Nets)
    return nets
