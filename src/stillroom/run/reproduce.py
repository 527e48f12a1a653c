"""`stillroom reproduce CELL`: make one number of the ledger again, and say pass or fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError, suggest
from stillroom.evaluation.protocol import find_protocol
from stillroom.evaluation.score import FULL
from stillroom.evaluation.statistics import Summary, summarise
from stillroom.methods import METHODS, PRESETS
from stillroom.methods.base import Outer
from stillroom.recipe import from_preset
from stillroom.run.cells import CELLS, Cell, agrees
from stillroom.run.distil import Plan, distil, plan
from stillroom.run.estimate import Cost, seconds
from stillroom.run.fits import full_row
from stillroom.run.judge import Asked, Judging, cost_of, judge, judging, student_flops
from stillroom.run.options import Machine
from stillroom.run.rows import Maker, row_of
from stillroom.runtime import Numerics
from stillroom.session import Session
from stillroom.tables import Line, about, percent, plural, span
from stillroom.types import Record

MEASURED = "measured.json"  # beside the recipes: what the ledger holds of every cell


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
    if cell.preset == FULL:
        rows = [full_row(bench)]
    elif _iterates(cell):
        planned, steps = _planned(cell, how, session)
        if not store.complete(planned.stage.key()):
            taken = about(seconds(planned.estimate.flops, planned.rt))
            session.say(f"{planned.estimate.steps} steps, {taken}")
        distil(planned, machine)
        made = store.folder(planned.stage.key()) / "steps"
        rows = [row_of(f"{cell.preset}@{s}", made / str(s), cell.ipc, s) for s in steps]
    else:
        from stillroom.config import DSA

        maker = Maker(bench, store, machine, how.rt, how.archs[0], DSA)
        draws = range(cell.students) if cell.preset == "random" else range(1)
        drawn = cell.preset == "random"
        rows = [
            row_of(
                cell.preset,
                maker.folder(cell.preset, cell.ipc, d),
                cell.ipc,
                None,
                d if drawn else None,
            )
            for d in draws
        ]
    session.say(cost_of(how, rows).in_words())
    records = [record for student in judge(how, rows) for record in student.records]
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
    if cell.preset != FULL and _iterates(cell):
        planned, _ = _planned(cell, how, session)
        taken = about(seconds(planned.estimate.flops, planned.rt))
        held = " (in the store already)" if store.complete(planned.stage.key()) else ""
        found.append(("distillation", f"{planned.estimate.steps} steps, {taken}{held}"))
    images = cell.ipc * len(bench.classes) or len(bench.train)
    students = cell.students * len(cell.rows)
    flops = students * sum(
        student_flops(forward, how.protocol, bench, images) for forward in how.forward.values()
    )
    whole = Cost("student", students, students, flops, seconds(flops, how.rt) / machine.workers)
    return [*found, ("students", whole.in_words())]


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


def _iterates(cell: Cell) -> bool:
    preset = PRESETS[cell.preset]
    return METHODS[preset.kind](**preset.method).steps(Outer(steps=1)) > 0


def _planned(cell: Cell, how: Judging, session: Session) -> tuple[Plan, tuple[int, ...]]:
    """The cell's distillation, and the steps of it that are judged."""
    given: dict[str, Any] = {"arch": cell.arch, "numerics": how.numerics}
    if cell.steps:
        given["outer"] = {"steps": cell.steps[-1], "keep": list(cell.steps)}
    recipe, row = from_preset(cell.preset, how.bench.name, cell.ipc, given, how.bench.known)
    planned = plan(recipe, how.bench, how.machine, session, store=how.store, row=row)
    return planned, cell.steps or (planned.stage.method.steps(planned.stage.outer),)


def recorded(cell: Cell, numerics: str, digest: str | None = None) -> tuple[Summary | None, str]:
    """What the ledger holds of a cell, out of the packaged summary of it, and of which data.

    Of `digest` if there is any of it; the second is then empty, else it says that they differ.
    """
    path = resources.files("stillroom") / "recipes" / MEASURED
    held = json.loads(path.read_text("utf-8")).get(cell.name, {}).get(numerics, {})
    if not held:
        return None, ""
    data = next((d for d in held if digest is not None and digest.startswith(d)), None)
    told = "" if data or digest is None else "of data with other pixels, or read otherwise"
    return summarise(held[data or next(iter(held))]), told


def measured_json(records: Sequence[Record]) -> str:
    """The packaged summary: cell -> numerics -> digest of the data -> accuracies, as fractions."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, cell in CELLS.items():
        for line in cell.measured(records):
            of = found.setdefault(name, {}).setdefault(line.numerics, {})
            of[line.conditions.data_digest[:8]] = list(line.values)
    return json.dumps(found, indent=1) + "\n"


def reproduction(records: Sequence[Record]) -> str:
    """`REPRODUCTION.md`: reported beside measured, cell by cell."""
    rows = [row for cell in CELLS.values() for row in _rows(cell, records)]
    head = ("cell", "protocol", "reported, %", "measured, %", "n", "gap", "vs random", "verdict",
            "how")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return _INTRODUCTION + "\n".join(lines) + "\n" + _notes()


def _rows(cell: Cell, records: Sequence[Record]) -> list[tuple[str, ...]]:
    paper, measured = cell.reported(), cell.measured(records)
    told = "-"
    if paper is not None:
        std = paper.versions.get("std")
        told = percent(paper.value) + (f" ± {percent(float(std))}" if std else "")
    if not measured:
        verdict = "not measured"
        return [(f"`{cell.name}`", cell.protocol, told, *"----", verdict, "-")]
    rows: list[tuple[str, ...]] = []
    for line in measured:
        mean = line.summary.mean
        gap = "-" if paper is None else percent(mean - paper.value, sign=True)
        value, n, beside, how = _measured(line)
        verdict = cell.verdict(mean, line.summary.std) + (
            " by one student" if line.summary.n == 1 else ""
        )
        rows.append((f"`{cell.name}`", cell.protocol, told, value, n, gap, beside, verdict, how))
    for name in cell.rows[:-1]:  # the curve on the way
        for line in cell.measured(records, name):
            value, n, beside, how = _measured(line)
            step = f"... at step {name.rpartition('@')[2]}"
            rows.append((step, cell.protocol, "", value, n, "", beside, "", how))
    return rows


def _measured(line: Line) -> tuple[str, str, str, str]:
    """Of one row: mean and interval, n, the gap to random (a star: intervals apart), how."""
    s = line.summary
    interval = f" ({span(s)})" if s.half is not None else ""
    beside = percent(line.gap, sign=True) + (" *" if line.separate else "")
    data = "".join(filter(str.isalnum, line.conditions.data_digest[:8]))
    how = f"{line.numerics}, {line.seconds:.0f} s a student, data {data}"
    return percent(s.mean) + interval, plural(s.n, line.counts.removesuffix("s")), beside, how


def _notes() -> str:
    """Where the reported numbers come from."""
    found: dict[str, list[str]] = {}
    for cell in CELLS.values():
        paper = cell.reported()
        if paper is not None:
            found.setdefault(paper.note, []).append(f"`{cell.name}`")
    sources = "".join(f"- {', '.join(names)}: {note}\n" for note, names in found.items())
    return f"\nReported numbers:\n\n{sources}"


_INTRODUCTION = """# Reproduction

Generated by `stillroom reproduce --ledger results/records.jsonl --out REPRODUCTION.md`; a test
fails if it is not what the ledger says. *Measured* was measured by this project, *reported* is a
paper's number. An interval is a 95 % t interval over n. *Reproduced* means that the mean lies
within 1.5 points of the reported one (2.5 at 1 image a class) and that the standard deviation of
the students is at most 1.5 points; *fewer steps* that our run is shorter than the paper's, *fewer
epochs* that the students were trained for less, so that the gap is no verdict; *other protocol*
that the paper does not say how it judged, or judged otherwise. *vs random* is the gap to random
images under the same protocol and numerics, with a star where the two intervals do not touch.
`stillroom reproduce CELL --data DIR` makes a cell again and says whether it agrees with what is
measured here.

**The CIFAR-10 here is a copy whose images were re-encoded as JPEG**, the papers' is not: the same
classes, counts and order, slightly other pixels.

"""
