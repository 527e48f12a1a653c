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
from stillroom.methods import PRESETS
from stillroom.recipe import from_preset
from stillroom.run.assess import held_out, measured, without
from stillroom.run.cells import CELLS, DISTILLATION, MODELS, SCHOOLING, Cell, agrees
from stillroom.run.distil import Plan, distil, plan
from stillroom.run.estimate import Cost, seconds, student_flops
from stillroom.run.fits import full_row
from stillroom.run.judge import judge
from stillroom.run.judging import Asked, Judging, cost_of, cost_of_teachers, judging
from stillroom.run.ledger import recorded
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals, costs_of_stages
from stillroom.run.rows import Maker, Row, row_of
from stillroom.run.teachers import Faculty
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
    if (taught := cost_of_teachers(how, rows)) is not None and taught.left:
        session.say(taught.in_words())
    session.say(cost_of(how, rows).in_words())
    records = [record for student in judge(how, rows) for record in student.records]
    if final is not None:
        records += _took(records, final)
    if cell.assess:
        records += [r for row in rows for r in _assessed(row, cell.assess, how, session)]
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
    used: list[tuple[str, int]] = []
    if _distilled(cell):
        planned, _ = _planned(cell, how, session)
        taken = about(seconds(planned.estimate.flops, planned.rt))
        held = " (in the store already)" if store.complete(planned.stage.key()) else ""
        found.append(("distillation", f"{planned.estimate.steps} steps, {taken}{held}"))
        if wanted := planned.stage.wants():
            costs = costs_of_stages(list(wanted.values()), machine, session, store)
            found += [("before it", cost.in_words()) for cost in costs]
        used = [(s.name, s.index) for s in wanted.values() if isinstance(s, Original)]
    if how.labelling is not None:
        cost, _ = cost_of_originals(how.labelling.teachers, machine, session, store)
        found.append(("teachers", cost.in_words()))
    images = cell.ipc * len(bench.classes) or len(bench.train)
    students = cell.students * len(cell.rows)
    each = sum(
        student_flops(forward, how.protocol, bench, images) for forward in how.forward.values()
    )
    flops = students * (each + how.protocol.passes * images * how.teaching)
    whole = Cost("student", students, students, flops, seconds(flops, how.rt) / machine.workers)
    found.append(("students", whole.in_words()))
    if cell.assess:
        free = without(used, bench, cell.assess, MODELS, find_schooling(SCHOOLING), store)
        cost, _ = cost_of_originals(free, machine, session, store)
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
        teachers=Faculty(archs=cell.teachers, schooling=cell.taught if cell.teachers else None),
    )
    images = cell.ipc * len(bench.classes) or len(bench.train)
    return judging(bench, asked, store, machine, session, images)


def _made(cell: Cell, how: Judging, session: Session) -> tuple[list[Row], dict[str, Any] | None]:
    """What is judged, made now where it is not in the store; of a distillation what it took."""
    if cell.preset == FULL:
        return [full_row(how.bench)], None
    if _distilled(cell):
        planned, steps = _planned(cell, how, session)
        key = planned.stage.key()
        if planned.estimate.steps and not how.store.complete(key):
            taken = about(seconds(planned.estimate.flops, planned.rt))
            session.say(f"{planned.estimate.steps} steps, {taken}")
        distil(planned, how.machine)
        made = how.store.folder(key)
        of = [(f"{cell.label}@{s}" if s else cell.label, s) for s in steps]
        rows = [row_of(name, made / "steps" / str(s), cell.ipc, s or None) for name, s in of]
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
        share = (r.step or 0) / final["step"] if final["step"] else 1.0
        taken = round(final["seconds"] * share, 1)
        told = {"value": taken, "seconds": taken, "unit": "seconds", "seed": 0}
        found.append(replace(r, metric=DISTILLATION, **told))
    return found


def _assessed(row: Row, archs: Sequence[str], how: Judging, session: Session) -> list[Record]:
    """What held-out originals say of one of the cell's sets."""
    assert row.folder is not None
    made, schooling = load(row.folder), find_schooling(SCHOOLING)
    stages = held_out(made, how.bench, archs, MODELS, schooling, how.store)
    _, records = measured(row.folder, how.bench, stages, how.store, how.machine, session)
    return [replace(r, row=row.name) for r in records]


def _distilled(cell: Cell) -> bool:
    """Whether a set is made by networks or steps, and not chosen as baselines are."""
    return cell.preset != FULL and PRESETS[cell.preset].kind != "selection"


def _planned(cell: Cell, how: Judging, session: Session) -> tuple[Plan, tuple[int, ...]]:
    """The cell's distillation, and the steps of it that are judged."""
    given = {**cell.given(), "numerics": how.numerics}
    recipe, row = from_preset(cell.preset, how.bench.name, cell.ipc, given, how.bench.known)
    planned = plan(recipe, how.bench, how.machine, session, store=how.store, row=row)
    return planned, cell.steps or (planned.stage.method.steps(planned.stage.outer),)
