"""`stillroom evaluate`: students on a set, baselines beside it, a record a student and rule."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original
from stillroom.artefacts.stage import Stage, code_digest
from stillroom.artefacts.store import Store, obtain_all
from stillroom.config import Model
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.evaluation.lessons import Labelling
from stillroom.evaluation.protocol import SELECTIONS, Protocol, Selection
from stillroom.evaluation.score import Score
from stillroom.nets.ensemble import Backend
from stillroom.nets.zoo import Arch
from stillroom.records import LEDGER, add_records
from stillroom.run import machine as machines
from stillroom.run.estimate import Cost, seconds, student_flops, student_steps
from stillroom.run.exhibits import NEIGHBOURS, write_exhibit, write_neighbours
from stillroom.run.fits import check_protocol, check_row, full_row
from stillroom.run.given import in_a_note, trusted
from stillroom.run.models import copy_student, file_name, refuse_others
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals
from stillroom.run.publish import EXHIBITS
from stillroom.run.rows import Maker, Row, baseline_rows, real_jpeg_rows, rows_of_set
from stillroom.run.teachers import Faculty, labelling
from stillroom.runtime import Numerics, Runtime
from stillroom.session import Session
from stillroom.types import Record

ROWS_OF_A_COMMAND = 3  # compiled code serves them all; a usual command judges more
WORTH_PROBING = 1e12  # floating-point operations, some seconds
WORTH_SAYING = 20.0  # seconds
STEP = 0.01  # seconds of a step beside its network: draws, augmentation, the optimiser


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
    rt: Runtime
    store: Store
    machine: Machine
    accuracies: Mapping[str, float] = field(default_factory=dict)  # of teachers' given weights


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


def evaluate(
    folder: Path | None,
    bench: Benchmark,
    asked: Asked,
    store: Store,
    machine: Machine,
    session: Session,
    ledger: Path | None = None,
) -> list[Record]:
    """Judge a set (or, with None, the full training data) and what it is compared with.

    Records are added to the file `ledger`, if one is given, row by row; where that is the set's
    own, what a page shows of the students goes into its `exhibits/`. Weights of the students go
    into the folder that `asked.save_models` names.
    """
    how, rows = prepared(folder, bench, asked, store, machine, session)
    if asked.save_models is not None and not asked.force:
        refuse_others(asked.save_models, _wanted(how, rows))
    taught = cost_of_teachers(how, rows)
    if taught is not None and taught.left:
        session.say(taught.in_words())
    if how.labelling is not None:  # those whose weights were given are tested first
        told = trusted(how.labelling.teachers, bench, store, machine, how.rt)
        how = dataclasses.replace(how, accuracies=told)
    cost = cost_of(how, rows)
    if cost.seconds > WORTH_SAYING:
        session.say(cost.in_words())
    own = folder / EXHIBITS if folder is not None and ledger == folder / LEDGER else None
    if own is not None and folder is not None:
        made = load(folder)
        if not asked.real_images:  # of an earlier evaluation too
            (own / NEIGHBOURS).unlink(missing_ok=True)
        elif made.data.get("content", bench.content) == bench.content:
            write_neighbours(own, made, bench, session)  # of its own data, not of any it meets
    records = []
    for batch in _batches(rows, machine.workers):
        students = judge(how, batch)
        for _, group in itertools.groupby(students, key=lambda s: s.row):
            same = list(group)
            found = [record for student in same for record in student.records]
            records += found
            if ledger is not None and (gone := add_records(ledger, found)):
                session.say(f"{ledger}: {gone} records of {same[0].row[0]} by other code replaced")
            if own is not None:
                _exhibit(own, same, bench)
            if asked.save_models is not None:
                for student in same:
                    copy_student(asked.save_models, student.name, student.score, asked.force)
    return records


def prepared(
    folder: Path | None,
    bench: Benchmark,
    asked: Asked,
    store: Store,
    machine: Machine,
    session: Session,
) -> tuple[Judging, list[Row]]:
    """Everything before the first student: what can be refused is, and baselines are chosen."""
    made = None if folder is None else load(folder)
    rows = [full_row(bench)] if folder is None else rows_of_set(folder, asked.steps)
    images = len(bench.train) if made is None else len(made)
    how = judging(bench, asked, store, machine, session, images, made, folder)
    for row in rows:
        check_row(row, bench, asked.protocol, how.labelling is not None)
    _check_taught(how, rows, asked.baselines or asked.real_jpegs)
    if made is not None:
        own, labels = rows[-1].label_bytes, _label_bytes(how)
        budget = rows[-1].bytes + (labels(len(made)) if how.labelling else own)  # of the last step
        maker = Maker(bench, store, machine, how.rt, how.archs[0], made.augment)
        rows += baseline_rows(maker, made.ipc) if asked.baselines else []
        rows += real_jpeg_rows(maker, made.ipc, budget, labels) if asked.real_jpegs else []
    return how, rows


def _label_bytes(how: Judging) -> Callable[[int], int]:
    """How many bytes stored labels of so many images take."""
    taught, classes = how.labelling, len(how.bench.classes)

    def count(images: int) -> int:
        own = how.protocol.settled(images, classes)
        return taught.nbytes(images, classes, own) if taught else 0

    return count


def _check_taught(how: Judging, rows: Sequence[Row], more: bool) -> None:
    """Refuse rows that need labels of networks which cannot be made here; `more`: baselines too.

    Raises: StillroomError with the remedy.
    """
    if how.labelling is None or how.labelling.teachers:
        return
    others = [row.name for row in rows if not how.labelling.of_set(row.digest).carried]
    if others or more:
        raise StillroomError(
            f"{others[0] if others else 'baselines'}: the labels that the set carries are its own "
            "alone, and those who gave them (other code or data, or a network of somebody's own) "
            "cannot be made here; name who labels all rows anew: --teachers"
        )


def cost_of_teachers(how: Judging, rows: Sequence[Row]) -> Cost | None:
    """Count the teachers that are not in the store; None where nobody is asked."""
    needed: dict[str, Original] = {}
    left: list[Stage] = [stage for _, stage in _wanted(how, rows)] if how.labelling else []
    while left:
        stage = left.pop()
        left += stage.needs()
        if isinstance(stage, Original):
            needed[stage.key()] = stage
    if not needed:
        return None
    some = list(needed.values())
    return cost_of_originals(some, how.machine, how.rt.session, how.store)[0]


def cost_of(how: Judging, rows: Sequence[Row]) -> Cost:
    """Count what is not in the store; the time is a rough estimate, of a half-second probe."""
    wanted = _wanted(how, rows)
    left = [pair for pair in wanted if not how.store.complete(pair[1].key())]
    flops, steps = 0.0, 0
    for row, stage in left:
        images = row.ipc * len(how.bench.classes) or len(how.bench.train)
        each = student_flops(how.forward[stage.arch.name], how.protocol, how.bench, images)
        flops += len(stage.seeds) * each
        own = how.protocol.settled(images, len(how.bench.classes), stage.arch.name)
        steps += len(stage.seeds) * student_steps(own, images)
    students, missing = (sum(len(stage.seeds) for _, stage in some) for some in (wanted, left))
    taken = steps * STEP + (seconds(flops, how.rt) if flops > WORTH_PROBING else 0.0)
    taken /= how.machine.workers
    return Cost("student", students, missing, flops, taken)


def _batches(rows: Sequence[Row], workers: int) -> list[list[Row]]:
    """Rows that are judged together: one after another, so that each is kept when it is done.

    With several workers all at once: they share the students, and each compiles once.
    """
    if workers > 1:
        return [list(rows)]
    return [list(same) for _, same in itertools.groupby(rows, key=_table_row)]


def _table_row(row: Row) -> tuple[str, int | None, int]:
    """What is one row of a table: the draws of a random set together."""
    return row.name, row.step, row.ipc


def _exhibit(folder: Path, students: Sequence[Student], bench: Benchmark) -> None:
    for arch in dict.fromkeys(s.records[0].arch for s in students):
        same = [s for s in students if s.records[0].arch == arch]
        write_exhibit(folder, same[0].records[0], bench.classes, [s.score for s in same])


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
    forward = {a.name: nets_for(a, bench, probe).forward_flops() for a in chosen}
    # By one row, not by all rows of the command, so that a baseline beside it changes nothing.
    each = sum(student_flops(f, protocol, bench, images) for f in forward.values())
    work = each * seeds * ROWS_OF_A_COMMAND
    return Judging(
        bench=bench,
        described=bench.describe(),
        protocol=asked.protocol,
        archs=chosen,
        seeds=tuple(range(seeds)),
        numerics=asked.numerics,
        students=asked.students,
        models=asked.save_models is not None,
        labelling=labelling(asked.teachers, made, protocol, bench, store, folder),
        forward=forward,
        rt=machines.runtime(machine, asked.numerics, work, session),
        store=store,
        machine=machine,
    )


@dataclass(frozen=True)
class Student:
    """One student: its row, what `Score` kept of it, and a record for every selection rule.

    `name` is what its files are called, where its weights are kept.
    """

    row: tuple[str, int | None, int]
    name: str
    score: dict[str, Any]
    records: list[Record]


def judge(how: Judging, rows: Sequence[Row]) -> list[Student]:
    """Train and test the students of rows; a random draw gets one student of its own seed."""
    wanted = _wanted(how, rows)
    names = ", ".join(dict.fromkeys(row.name for row in rows))
    how.rt.session.say(f"{names} on {', '.join(arch.name for arch in how.archs)}")
    stages = [stage for _, stage in wanted]
    found = obtain_all(how.store, stages, machines.executor(how.machine), how.rt)
    return [
        Student(
            _table_row(row),
            file_name(row, stage.arch, score["seed"]),
            score,
            _records(how, row, stage.arch, score),
        )
        for (row, stage), scores in zip(wanted, found, strict=True)
        for score in scores
    ]


def _wanted(how: Judging, rows: Sequence[Row]) -> list[tuple[Row, Score]]:
    wanted: list[tuple[Row, Score]] = []
    for row, arch in itertools.product(rows, how.archs):
        seeds = how.seeds if row.draw is None else (row.draw,)
        together = [seeds] if how.students == "vmap" else [(seed,) for seed in seeds]
        wanted += [(row, _score(how, row, arch, some)) for some in together]
    return wanted


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


def _records(how: Judging, row: Row, arch: Arch, score: dict[str, Any]) -> list[Record]:
    """What every selection rule makes of one student; the protocol's own is the "accuracy"."""
    found = []
    for rule in SELECTIONS:
        chosen = rule == how.protocol.select or len(score["curve"]) > 1
        if score[rule] is not None and chosen:  # of one test there is nothing to select
            metric = "accuracy" if rule == how.protocol.select else f"accuracy.{rule}"
            found.append(_record(how, row, arch, score, rule, metric))
    return found


def _record(
    how: Judging, row: Row, arch: Arch, score: dict[str, Any], rule: Selection, metric: str
) -> Record:
    soft = row.label_bytes if how.labelling is None else 0
    return Record(
        benchmark=how.bench.name,
        data_digest=how.bench.digest,
        ipc=row.ipc,
        row=row.name,
        set_key=row.digest,
        augment=row.augment if how.protocol.augment == "set" else how.protocol.augment,
        family=row.family,
        set_seed=row.set_seed,
        labels=row.labels if how.labelling is None else score["told"],
        step=row.step,
        draw=row.draw,
        protocol=how.protocol.id,
        protocol_hash=how.protocol.digest(),
        arch=arch.name,
        seed=score["seed"],
        metric=metric,
        value=score[rule]["test"],
        unit="fraction",
        selection=rule,
        source="measured",
        bytes=how.bench.train.nbytes if row.folder is None else row.bytes,
        label_bytes=soft + score["label_bytes"],
        teacher_bytes=score["teacher_bytes"],
        seconds=round(score["seconds"], 3),
        memory=score["memory"],
        device=score["made"]["device"],
        numerics=how.numerics + ("" if how.students == "loop" else f"/{how.students}"),
        code=code_digest(Score.sources),
        split=how.bench.split,
        note=in_a_note(how.accuracies),
        versions={k: str(v) for k, v in score["made"].items() if k != "device"},
    )
