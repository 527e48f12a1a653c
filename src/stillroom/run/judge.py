"""`stillroom evaluate`: students on a set, baselines beside it, a record a student and rule."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.artefacts.stage import code_digest
from stillroom.artefacts.store import Store, obtain_all
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import SELECTIONS, Selection
from stillroom.evaluation.score import Score
from stillroom.nets.zoo import Arch
from stillroom.records import LEDGER, add_records
from stillroom.run import machine as machines
from stillroom.run.exhibits import NEIGHBOURS, write_exhibit, write_neighbours
from stillroom.run.fits import check_row, full_row
from stillroom.run.given import in_a_note, trusted
from stillroom.run.judging import Asked, Judging, cost_of, cost_of_teachers, judging, wanted
from stillroom.run.models import copy_student, file_name, refuse_others
from stillroom.run.options import Machine
from stillroom.run.publish import EXHIBITS
from stillroom.run.rows import Maker, Row, baseline_rows, real_jpeg_rows, rows_of_set
from stillroom.session import Session
from stillroom.types import Record

WORTH_SAYING = 20.0  # seconds


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
        refuse_others(asked.save_models, wanted(how, rows))
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
    asked_for = wanted(how, rows)
    names = ", ".join(dict.fromkeys(row.name for row in rows))
    how.rt.session.say(f"{names} on {', '.join(arch.name for arch in how.archs)}")
    stages = [stage for _, stage in asked_for]
    found = obtain_all(how.store, stages, machines.executor(how.machine), how.rt)
    return [
        Student(
            _table_row(row),
            file_name(row, stage.arch, score["seed"]),
            score,
            _records(how, row, stage.arch, score),
        )
        for (row, stage), scores in zip(asked_for, found, strict=True)
        for score in scores
    ]


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
