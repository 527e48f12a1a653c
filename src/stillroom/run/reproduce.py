"""`stillroom reproduce CELL`: make one number of the ledger again, and say pass or fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import find_schooling
from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import load
from stillroom.errors import StillroomError, suggest
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.score import FULL
from stillroom.evaluation.statistics import Summary, summarise
from stillroom.files import read_json
from stillroom.methods import METHODS, PRESETS
from stillroom.methods.base import Outer
from stillroom.recipe import from_preset
from stillroom.run.assess import held_out, measured, without
from stillroom.run.cells import CELLS, DISTILLATION, MODELS, SCHOOLING, Cell, agrees
from stillroom.run.distil import Plan, distil, plan
from stillroom.run.estimate import Cost, seconds
from stillroom.run.fits import full_row
from stillroom.run.judge import Asked, Judging, cost_of, judge, judging, student_flops
from stillroom.run.ledger import recorded
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals
from stillroom.run.rows import Maker, Row, row_of
from stillroom.runtime import Numerics
from stillroom.session import Session
from stillroom.tables import about
from stillroom.types import Record


@dataclass(frozen=True)
class Outcome:
    """A cell made again: its records, their summary, the recorded one, and the verdicts.

    `data` says that the record is of other images, if it is.
    """

    cell: Cell
    records: list[Record]
    summary: Summary
    recorded: Summary | None
    data: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether it agrees with the record; None where nothing is recorded."""
        return None if self.recorded is None else agrees(self.summary, self.recorded, self.cell.ipc)


def find_cell(name: str) -> Cell:
    """Look a cell up.

    Raises: StillroomError with the known names.
    """
    if name not in CELLS:
        raise StillroomError(
            f"cell={name[:80]!r} is unknown; known: {', '.join(CELLS)}{suggest(name, CELLS)}"
        )
    return CELLS[name]


def reproduce(
    cell: Cell,
    bench: Benchmark,
    store: Store,
    machine: Machine,
    session: Session,
    numerics: Numerics | None = None,
) -> Outcome:
    """Distil (or choose) the cell's set, train its students, compare with the record.

    `numerics` None: the cell's own.
    """
    numerics = numerics or cell.numerics
    how = _judging(cell, bench, store, machine, session, numerics)
    rows, final = _made(cell, how, session)
    session.say(cost_of(how, rows).in_words())
    records = [record for student in judge(how, rows) for record in student.records]
    if final is not None:
        records += _took(records, final)
    if cell.assess:
        records += _assessed(cell, rows[-1], how, session)
    last = cell.rows[-1]
    values = [r.value for r in records if r.metric == "accuracy" and r.row == last]
    known, data = recorded(cell, numerics, bench.digest)
    return Outcome(cell, records, summarise(values), known, data)


def plan_of(
    cell: Cell,
    bench: Benchmark,
    store: Store,
    machine: Machine,
    session: Session,
    numerics: Numerics | None = None,
) -> list[tuple[str, str]]:
    """What `reproduce` would do from nothing, as names and texts; nothing is run."""
    numerics = numerics or cell.numerics
    how = _judging(cell, bench, store, machine, session, numerics)
    found = [("protocol", cell.protocol), ("numerics", numerics)]
    used: list[list[Any]] = []
    if cell.preset != FULL and _iterates(cell):
        planned, _ = _planned(cell, how, session)
        taken = about(seconds(planned.estimate.flops, planned.rt))
        held = " (in the store already)" if store.complete(planned.stage.key()) else ""
        found.append(("distillation", f"{planned.estimate.steps} steps, {taken}{held}"))
        if wanted := planned.stage.wants():
            cost, _ = cost_of_originals(list(wanted.values()), bench, machine, session, store)
            found.append(("originals", cost.in_words()))
        used = [[s.name, s.index] for s in wanted.values() if isinstance(s, Original)]
    images = cell.ipc * len(bench.classes) or len(bench.train)
    students = cell.students * len(cell.rows)
    flops = students * sum(
        student_flops(forward, how.protocol, bench, images) for forward in how.forward.values()
    )
    whole = Cost("student", students, students, flops, seconds(flops, how.rt) / machine.workers)
    found.append(("students", whole.in_words()))
    if cell.assess:
        free = without(used, bench, cell.assess, MODELS, find_schooling(SCHOOLING), store)
        cost, _ = cost_of_originals(free, bench, machine, session, store)
        found.append(("held-out originals", cost.in_words()))
    return found


def _judging(
    cell: Cell,
    bench: Benchmark,
    store: Store,
    machine: Machine,
    session: Session,
    numerics: Numerics,
) -> Judging:
    if bench.known != cell.benchmark:
        raise StillroomError(
            f"{cell.name} is of {cell.benchmark}; {bench.name} has other classes or sizes"
        )
    asked = Asked(
        protocol=find_protocol(cell.protocol),
        archs=(cell.arch,),
        seeds=cell.students,
        numerics=numerics,
    )
    images = cell.ipc * len(bench.classes) or len(bench.train)
    return judging(bench, asked, store, machine, session, images)


def _made(cell: Cell, how: Judging, session: Session) -> tuple[list[Row], dict[str, Any] | None]:
    """What is judged, made now where it is not in the store; of a distillation what it took."""
    if cell.preset == FULL:
        return [full_row(how.bench)], None
    if _iterates(cell):
        planned, steps = _planned(cell, how, session)
        key = planned.stage.key()
        if not how.store.complete(key):
            taken = about(seconds(planned.estimate.flops, planned.rt))
            session.say(f"{planned.estimate.steps} steps, {taken}")
        distil(planned, how.machine)
        made = how.store.folder(key)
        rows = [row_of(f"{cell.label}@{s}", made / "steps" / str(s), cell.ipc, s) for s in steps]
        return rows, read_json(made / "final.json")
    maker = Maker(how.bench, how.store, how.machine, how.rt, how.archs[0], cell.augment)
    draws = range(cell.students) if cell.preset == "random" else (None,)
    sets = [(d, maker.folder(cell.preset, cell.ipc, d or 0)) for d in draws]
    return [row_of(cell.preset, folder, cell.ipc, None, d) for d, folder in sets], None


def _took(records: Sequence[Record], final: dict[str, Any]) -> list[Record]:
    """What making every judged set took: the steps of a run cost alike."""
    one = {r.row: r for r in records if r.metric == "accuracy"}
    found = []
    for r in one.values():
        taken = round(final["seconds"] * (r.step or 0) / final["step"], 1)
        told = {"value": taken, "seconds": taken, "unit": "seconds", "seed": 0}
        found.append(replace(r, metric=DISTILLATION, **told))
    return found


def _assessed(cell: Cell, row: Row, how: Judging, session: Session) -> list[Record]:
    """What held-out originals say of the cell's set."""
    assert row.folder is not None
    made, schooling = load(row.folder), find_schooling(SCHOOLING)
    stages = held_out(made, how.bench, cell.assess, MODELS, schooling, how.store)
    _, records = measured(row.folder, how.bench, stages, how.store, how.machine, session)
    return [replace(r, row=row.name) for r in records]


def _iterates(cell: Cell) -> bool:
    preset = PRESETS[cell.preset]
    return METHODS[preset.kind](**preset.method).steps(Outer(steps=1)) > 0


def _planned(cell: Cell, how: Judging, session: Session) -> tuple[Plan, tuple[int, ...]]:
    """The cell's distillation, and the steps of it that are judged."""
    given = {**cell.given(), "numerics": how.numerics}
    recipe, row = from_preset(cell.preset, how.bench.name, cell.ipc, given, how.bench.known)
    planned = plan(recipe, how.bench, how.machine, session, store=how.store, row=row)
    return planned, cell.steps or (planned.stage.method.steps(planned.stage.outer),)
