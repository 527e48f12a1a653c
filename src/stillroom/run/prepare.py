"""`stillroom prepare`: stages that methods need, made alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

import stillroom
from stillroom.artefacts.experts import Expert, Kept, Trajectory
from stillroom.artefacts.given import settled
from stillroom.artefacts.opened import open_bench
from stillroom.artefacts.originals import Original, OriginalModel, pool_of
from stillroom.artefacts.released import ReleasedStatistics
from stillroom.artefacts.released_names import Repair
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.stage import Stage, code_digest, with_needs
from stillroom.artefacts.statistics import FILE, Observed, Statistics
from stillroom.artefacts.store import Store, obtain_all
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256
from stillroom.records import NETWORK, NETWORK_ACCURACY
from stillroom.run import machine as machines
from stillroom.run.asked import schooling_in_words
from stillroom.run.estimate import Cost, Pass, passes_of, seconds
from stillroom.run.given import bring, check_given, of_tree, say_guessing
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session
from stillroom.types import Record

S = TypeVar("S", bound=Stage)


def originals(
    bench: Benchmark, archs: Sequence[str], num: int, schooling: Schooling, store: Store
) -> list[Original]:
    """The stages of `num` models of every network, with or without given weights."""
    auto = machines.choose_arch("auto", bench)
    names = [settled(arch, bench, store.root, auto) for arch in archs]
    return pool_of(names, num, schooling, bench.describe(), auto, store.root)


def experts(
    bench: Benchmark,
    archs: Sequence[str],
    num: int,
    schooling: Schooling,
    upto: int | None,
    store: Store,
    since: int = 0,
    kept: Kept = "float32",
) -> list[Expert]:
    """The stages of `num` experts of every network, kept from an epoch to another or to the end."""
    chosen = [machines.choose_arch(arch, bench) for arch in archs]
    last = schooling.passes if upto is None else upto
    return [
        Expert(schooling, bench.describe(), arch, i, last, False, store.root, since, kept)
        for arch in chosen
        for i in range(num)
    ]


def cost_of_originals(
    wanted: Sequence[Stage], machine: Machine, session: Session, store: Store
) -> tuple[Cost, Runtime]:
    """Count the originals that are not in the store, and how it would run; the time is rough."""
    return _cost_of_trained(Original, "original model", wanted, machine, session, store)


def cost_of_experts(
    wanted: Sequence[Stage], machine: Machine, session: Session, store: Store
) -> tuple[Cost, Runtime]:
    """The same of experts."""
    return _cost_of_trained(Expert, "expert", wanted, machine, session, store)


def _cost_of_trained(
    kind: type[Original] | type[Expert],
    what: str,
    wanted: Sequence[Stage],
    machine: Machine,
    session: Session,
    store: Store,
) -> tuple[Cost, Runtime]:
    stages = list(
        {s.key(): s for s in with_needs(wanted, store.holds) if isinstance(s, kind)}.values()
    )
    lacking = [stage for stage in stages if not store.complete(stage.key())]
    numerics = lacking[0].numerics if lacking else "float32"
    bare = machines.runtime(machine, numerics, 0, session)
    probe = dataclasses.replace(bare, session=Session())
    left = [stage for stage in lacking if _share_left(stage, probe)]
    each = [stage.flops(probe) * _share_left(stage, probe) for stage in left]
    flops, rt = sum(each), bare.sized(max(each, default=0.0))
    taken = seconds(flops, rt) / machine.workers
    together = min(machine.workers, len(left))
    memory = together * max((stage.memory(probe) for stage in left), default=0)
    given = {isinstance(stage, Original) and bool(stage.weights) for stage in left}
    verb = "to train" if given <= {False} else "to test" if given == {True} else "to train or test"
    disk = sum(stage.nbytes(probe) for stage in left if isinstance(stage, Expert))
    cost = Cost(what, len(stages), len(left), flops, taken, verb, memory, disk)
    return cost, rt.under("float32")  # what looks at them; each is trained under its own


def _share_left(stage: Original | Expert, rt: Runtime) -> float:
    """The share of a training that no other expert in the store spares."""
    return 1 - stage.there(rt) / stage.trained.passes if isinstance(stage, Expert) else 1.0


def costs_of_stages(
    wanted: Sequence[Stage], machine: Machine, session: Session, store: Store
) -> list[Cost]:
    """What of a run comes before it: trained networks, then passes over the real images."""
    found = [
        cost_of_originals(wanted, machine, session, store)[0],
        cost_of_experts(wanted, machine, session, store)[0],
    ]
    found = [cost for cost in found if cost.total]
    passes = passes_of(wanted, store)
    return [*found, cost_of_passes(passes, machine, session, store)] if passes else found


def cost_of_passes(
    passes: Sequence[Pass], machine: Machine, session: Session, store: Store
) -> Cost:
    """Count the passes over the real images whose results are not in the store."""
    left = [stage for stage in passes if not store.complete(stage.key())]
    rt = dataclasses.replace(machines.runtime(machine, "float32", 0, session), compile=False)
    probe = dataclasses.replace(rt, session=Session())
    flops = sum(stage.flops(probe) for stage in left)
    memory = max((stage.memory(probe) for stage in left), default=0)
    taken = seconds(flops, rt) / machine.workers
    return Cost("real-image pass", len(passes), len(left), flops, taken, "to make", memory)


def obtain_originals(
    stages: Sequence[Original], machine: Machine, store: Store, rt: Runtime
) -> dict[str, list[OriginalModel]]:
    """The models by network, trained (or tested) now where they are not in the store.

    Raises: StillroomError if given weights are not to be trusted.
    """
    found: list[OriginalModel] = obtain_all(store, stages, machines.executor(machine), rt)
    if any(stage.weights for stage in stages):
        bench = open_bench(stages[0].bench, store.root, rt)
        check_given(stages, found, bench, machine, rt.session)
    pool: dict[str, list[OriginalModel]] = {}
    for stage, model in zip(stages, found, strict=True):
        pool.setdefault(stage.name, []).append(model)
    return pool


def records_of(
    stages: Sequence[Original], store: Store, bench: Benchmark, rt: Runtime
) -> list[Record]:
    """How accurate models that are in the store are on the test images, for a ledger."""
    return [_record(stage, stage.load(store.folder(stage.key())), bench, rt) for stage in stages]


def _record(stage: Original, model: OriginalModel, bench: Benchmark, rt: Runtime) -> Record:
    schooling = stage.schooling
    asked = [stage.weights] if stage.weights else [schooling.model_dump(mode="json")]
    return Record(
        benchmark=bench.name,
        data_digest=bench.digest,
        ipc=0,
        row=NETWORK,
        set_key="",
        step=None,
        draw=None,
        protocol="given weights" if stage.weights else schooling_in_words(schooling)[:300],
        protocol_hash=sha256(canonical(asked))[:12],
        arch=stage.name,
        seed=stage.index,
        metric=NETWORK_ACCURACY,
        value=model.accuracy,
        unit="fraction",
        selection=schooling.select,
        source="measured",
        bytes=sum(tensor.nbytes for tensor in model.weights.values()),
        seconds=model.seconds,
        device=rt.device.type,
        numerics=stage.numerics,
        code=code_digest(stage.sources),
        split=bench.split,
        versions={"stillroom": stillroom.__version__, "torch": torch.__version__},
    )


def obtain_experts(
    stages: Sequence[Expert], machine: Machine, store: Store, rt: Runtime
) -> dict[str, list[Trajectory]]:
    """The experts by network, trained now where they are not in the store."""
    found: list[Trajectory] = obtain_all(store, stages, machines.executor(machine), rt)
    say_guessing(found, open_bench(stages[0].bench, store.root, rt), rt.session)
    pool: dict[str, list[Trajectory]] = {}
    for one in found:
        pool.setdefault(one.arch.name, []).append(one)
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
    if any(model.weights for model in models):
        obtain_originals(models, machine, store, rt)  # which looks whether they may be trusted
    stages = [Statistics(model, by_class, batch, augment) for model in models]
    found: list[Observed] = obtain_all(store, stages, machines.executor(machine), rt)
    return _sized(store, stages, found)


def obtain_released(
    models: Sequence[Original],
    source: Path,
    repair: Sequence[Repair],
    by_class: bool,
    machine: Machine,
    store: Store,
    rt: Runtime,
) -> list[tuple[ReleasedStatistics, Observed, int]]:
    """What others have released of the same, for models whose weights are given."""
    stages = of_tree(models, source, repair, by_class)
    for stage in stages:
        bring(stage, source, store, rt)
    obtain_originals(models, machine, store, rt)
    return _sized(store, stages, [stage.load(store.folder(stage.key())) for stage in stages])


def _sized(
    store: Store, stages: Sequence[S], found: Sequence[Observed]
) -> list[tuple[S, Observed, int]]:
    sizes = [(store.folder(stage.key()) / FILE).stat().st_size for stage in stages]
    return list(zip(stages, found, sizes, strict=True))
