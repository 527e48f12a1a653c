"""What an evaluation is to do: as it is asked, as it is settled, and what it costs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original
from stillroom.artefacts.relabels import Relabel
from stillroom.artefacts.stage import Stage
from stillroom.artefacts.store import Store
from stillroom.config import Model
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.evaluation.lessons import Labelling
from stillroom.evaluation.protocol import Protocol
from stillroom.evaluation.score import Score
from stillroom.nets.ensemble import Backend
from stillroom.nets.zoo import Arch
from stillroom.run import machine as machines
from stillroom.run.estimate import Cost, seconds, student_flops, student_steps
from stillroom.run.fits import check_pieces, check_protocol
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals
from stillroom.run.rows import Row
from stillroom.run.teachers import Faculty, labelling
from stillroom.runtime import Numerics, Runtime
from stillroom.session import Session

ROWS_OF_A_COMMAND = 3  # compiled code serves them all; a usual command judges more
WORTH_PROBING = 1e12  # floating-point operations, some seconds
VIEW = {False: 5e-9, True: 6e-8}  # seconds a pixel of a view, without and with RandAugment
STEP = 0.01  # seconds of a step beside its network: draws, augmentation, the optimiser


class Asked(Model):
    """What a user asks of an evaluation, beside the set."""

    protocol: Protocol
    archs: tuple[str | Callable[..., Any], ...] = Field(min_length=1)
    seeds: int | None = Field(None, ge=1, le=1000, strict=True)
    steps: str = "last"
    baselines: bool = False
    numerics: Numerics = "float32"
    students: Backend = "loop"
    real_jpegs: bool = False
    real_images: bool = True
    save_models: Path | None = None
    force: bool = False
    teachers: Faculty = Faculty()


@dataclass(frozen=True)
class Judging:
    """How rows are judged; the same for a set and for its baselines."""

    bench: Benchmark
    described: dict[str, Any]
    protocol: Protocol
    archs: tuple[Arch, ...]
    seeds: tuple[int, ...]
    numerics: Numerics
    students: Backend
    models: bool
    labelling: Labelling | None
    forward: Mapping[str, float]  # FLOPs of one image, by architecture
    teaching: float  # the same of all teachers together
    rt: Runtime
    store: Store
    machine: Machine
    accuracies: Mapping[str, float] = field(default_factory=dict)  # of teachers' given weights


def judging(
    bench: Benchmark,
    asked: Asked,
    store: Store,
    machine: Machine,
    session: Session,
    images: int,
    made: Distilled | None = None,
    folder: Path | None = None,
) -> Judging:
    """Settle everything that all rows share. `images` of a row only sizes the work.

    `made` is the set in `folder` whose own teachers teach, or whose labels count, where the
    protocol wants some and nobody names them.
    """
    # By name: of a network asked for twice every student would count twice.
    chosen = tuple(
        {a.name: a for a in (machines.choose_arch(n, bench) for n in asked.archs)}.values()
    )
    protocol = asked.protocol
    check_protocol(protocol, bench)
    seeds = asked.seeds or protocol.seeds
    bare = machines.runtime(machine, asked.numerics, 0, session)
    probe = dataclasses.replace(bare, session=Session())
    nets = {a.name: nets_for(a, bench, probe) for a in chosen}
    check_pieces(protocol, list(nets.values()))
    forward = {name: one.forward_flops() for name, one in nets.items()}
    # By one row, not by all rows of the command, so that a baseline beside it changes nothing.
    each = sum(student_flops(f, protocol, bench, images) for f in forward.values())
    work = each * seeds * ROWS_OF_A_COMMAND
    taught = labelling(asked.teachers, made, protocol, bench, store, folder)
    teachers = taught.teachers if taught is not None else ()
    return Judging(
        bench=bench,
        described=bench.describe(),
        protocol=asked.protocol,
        archs=chosen,
        seeds=tuple(range(seeds)),
        numerics=asked.numerics,
        students=asked.students,
        models=asked.save_models is not None,
        labelling=taught,
        forward=forward,
        teaching=sum(nets_for(t.arch, bench, probe).forward_flops() for t in teachers),
        rt=machines.runtime(machine, asked.numerics, work, session),
        store=store,
        machine=machine,
    )


def wanted(how: Judging, rows: Sequence[Row]) -> list[tuple[Row, Score]]:
    """What is to be trained: a stage a row, network and student, or all its students at once."""
    found: list[tuple[Row, Score]] = []
    for row, arch in itertools.product(rows, how.archs):
        seeds = how.seeds if row.draw is None else (row.draw,)
        together = [seeds] if how.students == "vmap" else [(seed,) for seed in seeds]
        found += [(row, _score(how, row, arch, some)) for some in together]
    return found


def _score(how: Judging, row: Row, arch: Arch, seeds: tuple[int, ...]) -> Score:
    return Score(
        protocol=how.protocol,
        bench=how.described,
        set_digest=row.digest,
        arch=arch,
        seeds=seeds,
        numerics=how.numerics,
        students=how.students,
        augment=row.augment if row.folder is None else "",
        set_folder=row.folder,
        store=how.store.root,
        models=how.models,
        labelling=how.labelling and how.labelling.of_set(row.digest),
        images=row.images if how.labelling else 0,
    )


def cost_of_teachers(how: Judging, rows: Sequence[Row]) -> Cost | None:
    """Count the teachers that are not in the store; None where nobody is asked."""
    needed: dict[str, Original] = {}
    left: list[Stage] = [stage for _, stage in wanted(how, rows)] if how.labelling else []
    while left:
        stage = left.pop()
        left += stage.needs()
        if isinstance(stage, Original):
            needed[stage.key()] = stage
    if not needed:
        return None
    some = list(needed.values())
    return cost_of_originals(some, how.machine, how.rt.session, how.store)[0]


def cost_of(how: Judging, rows: Sequence[Row], again: Sequence[str] = ()) -> Cost:
    """Count what is not in the store; the time is a rough estimate, of a half-second probe.

    `again`: keys of students that are there and will be trained once more.
    """
    asked_for = wanted(how, rows)
    left = [p for p in asked_for if p[1].key() in again or not how.store.complete(p[1].key())]
    flops, steps, pixels = 0.0, 0, 0
    lessons: dict[str, float] = {}
    for row, stage in left:
        images = row.ipc * len(how.bench.classes) or len(how.bench.train)
        each = student_flops(how.forward[stage.arch.name], how.protocol, how.bench, images)
        flops += len(stage.seeds) * each
        lessons |= dict(_lessons(how, stage, images))
        own = how.protocol.settled(images, len(how.bench.classes), stage.arch.name)
        steps += len(stage.seeds) * student_steps(own, images)
        pixels += len(stage.seeds) * own.passes * images * how.bench.size**2
    flops += sum(lessons.values())
    students, missing = (sum(len(stage.seeds) for _, stage in some) for some in (asked_for, left))
    view = how.protocol.view
    drawn = 0.0 if view is None else pixels * VIEW[bool(view.ops)]
    taken = steps * STEP + drawn + (seconds(flops, how.rt) if flops > WORTH_PROBING else 0.0)
    taken /= how.machine.workers
    return Cost("student", students, missing, flops, taken)


def _lessons(how: Judging, stage: Score, images: int) -> Iterator[tuple[str, float]]:
    """Operations of the teachers: by what they are for, so that labels of a set count once."""
    if how.labelling is None:
        return
    if how.labelling.regime == "teachers":
        yield stage.key(), len(stage.seeds) * how.protocol.passes * images * how.teaching
    for labels in stage.needs():
        if isinstance(labels, Relabel) and not how.store.complete(labels.key()):
            yield labels.key(), (labels.header().kept + 1.0) * images * how.teaching
