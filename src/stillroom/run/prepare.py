"""`stillroom prepare`: stages that methods need, made alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stillroom.artefacts.originals import Original, OriginalModel
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.stage import Stage
from stillroom.artefacts.statistics import FILE, Observed, Statistics
from stillroom.artefacts.store import Store, obtain_all
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.run import machine as machines
from stillroom.run.distil import choose_arch
from stillroom.run.estimate import Cost, seconds
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session


def originals(
    bench: Benchmark, archs: Sequence[str], num: int, schooling: Schooling, store: Store
) -> list[Original]:
    """The stages of `num` models of every network."""
    chosen = [choose_arch(arch, bench.size) for arch in archs]
    described = bench.describe()
    return [
        Original(schooling, described, arch, i, "float32", store.root)
        for arch in chosen
        for i in range(num)
    ]


def cost_of_originals(
    wanted: Sequence[Stage], bench: Benchmark, machine: Machine, session: Session, store: Store
) -> tuple[Cost, Runtime]:
    """Count the originals that are not in the store, and how it would run; the time is rough."""
    stages = list({s.key(): s for s in wanted if isinstance(s, Original)}.values())
    left = [stage for stage in stages if not store.complete(stage.key())]
    bare = machines.runtime(machine, "float32", 0, session)
    probe = dataclasses.replace(bare, session=Session())
    each = [stage.flops(probe) for stage in left]
    flops, rt = sum(each), bare.sized(max(each, default=0.0))
    taken = seconds(flops, rt) / machine.workers
    return Cost("original model", len(stages), len(left), flops, taken), rt


def obtain_originals(
    stages: Sequence[Original], machine: Machine, store: Store, rt: Runtime
) -> dict[str, list[OriginalModel]]:
    """The models by network, trained now where they are not in the store."""
    found: list[OriginalModel] = obtain_all(store, stages, machines.executor(machine), rt)
    pool: dict[str, list[OriginalModel]] = {}
    for stage, model in zip(stages, found, strict=True):
        pool.setdefault(stage.arch.name, []).append(model)
    return pool


def obtain_statistics(
    models: Sequence[Original],
    by_class: bool,
    batch: int,
    augment: str,
    machine: Machine,
    store: Store,
    rt: Runtime,
) -> list[tuple[Statistics, Observed, int]]:
    """What the layers of every model are given by the real images, and its bytes on disk.

    Models are trained, and their data looked at, now where that is not in the store.
    """
    if batch < 1:
        raise StillroomError(f"--seen-batch {batch} must be at least 1")
    parse(augment)
    stages = [Statistics(model, by_class, batch, augment) for model in models]
    found: list[Observed] = obtain_all(store, stages, machines.executor(machine), rt)
    sizes = [(store.folder(stage.key()) / FILE).stat().st_size for stage in stages]
    return list(zip(stages, found, sizes, strict=True))
