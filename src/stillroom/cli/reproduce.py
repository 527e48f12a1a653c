"""`stillroom reproduce`: the ledger's cells, one made again, or the table of all."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.files import user_path
from stillroom.run.options import DataOptions, Machine

# A cell is of the benchmark as it is: other splits or constants would be another number.
_READ_AS_EVER = tuple(name for name in DataOptions.model_fields if name != "data_root")
FAILED = 1  # exit code of a cell that does not agree with the record


def _reproduce(**values: Any) -> None:
    if values["cell"] is None and (
        unread := [n for n in ("data", "records", "numerics", "plan") if values[n]]
    ):
        raise StillroomError(f"--{unread[0]} belongs to a CELL; name one")
    if values["ledger"] is not None:
        if values["cell"] is not None:
            raise StillroomError("--ledger writes the table of all cells; leave CELL out")
        _write_table(user_path(values["ledger"], "ledger"), values["out"])
        return
    if values["out"] is not None:
        raise StillroomError("--out is for the table; name the ledger as well, with --ledger")
    if values["cell"] is None:
        _list()
        return
    from stillroom.cli.show import key_values, say
    from stillroom.progress import Shown
    from stillroom.records import add_records, read_records
    from stillroom.run import machine as machines
    from stillroom.run.reproduce import find_cell, plan_of, reproduce
    from stillroom.tables import percent

    cell = find_cell(values["cell"])
    ledger = user_path(values["records"], "records") if values["records"] is not None else None
    if ledger is not None and ledger.exists():
        read_records(ledger)  # what cannot be added to is said before the work
    options = flags.settle(DataOptions, values, "options")
    if cell.zca:
        options = options.model_copy(update={"zca": True})
    machine = flags.settle(Machine, values, "machine")
    store = machines.store(machine)
    shown = Shown(values["quiet"])
    with shown.interruptible(machine.minutes):
        bench = machines.benchmark(values["data"] or cell.benchmark, options, store)
        if values["plan"]:
            told = plan_of(cell, bench, store, machine, shown, values["numerics"])
            key_values(f"{cell.name} (estimates)", told)
            return
        made = reproduce(cell, bench, store, machine, shown, values["numerics"])
    say(f"{cell.name} under {cell.protocol}: {_interval(made.summary)}")
    paper = cell.reported()
    if paper is not None:
        say(f"reported: {percent(paper.value)} %, {paper.note}: {cell.verdict(made.summary)}")
    if ledger is not None:
        add_records(ledger, made.records)
    if made.recorded is None:
        say("nothing is recorded of it yet")
        return
    of = f" ({made.data})" if made.data else ""
    say(f"recorded: {_interval(made.recorded)}{of}: {'pass' if made.passed else 'FAIL'}")
    if not made.passed:
        raise SystemExit(FAILED)


def _interval(s: Any) -> str:
    from stillroom.tables import percent, span

    known = f" ({span(s, ' .. ')})" if s.half is not None else ""
    return f"{percent(s.mean)} %{known}, n = {s.n}"


def _list() -> None:
    from stillroom.cli.show import rows
    from stillroom.run.cells import CELLS
    from stillroom.run.ledger import recorded
    from stillroom.tables import percent, plural

    cells = []
    for cell in CELLS.values():
        paper, (ours, _) = cell.reported(), recorded(cell, cell.numerics)
        told = percent(paper.value) if paper else "-"
        known = f"{percent(ours.mean)} ({plural(ours.n, 'number')})" if ours else "-"
        verdict = cell.verdict(ours) if ours else "not measured"
        cells.append((cell.name, cell.protocol, cell.numerics, told, known, verdict))
    heads = ("cell", "protocol", "numerics", "reported %", "measured %", "verdict")
    rows("cells: stillroom reproduce CELL --data DIR; --plan shows the cost", heads, cells)


def _write_table(ledger: Path, out: Path | None) -> None:
    from stillroom.cli.show import say
    from stillroom.files import write_atomic
    from stillroom.records import read_records
    from stillroom.run.ledger import measured_json, reproduction

    made = measured_json if out is not None and out.suffix == ".json" else reproduction
    text = made(read_records(ledger))
    if out is None:
        say(text)
        return
    write_atomic(user_path(out, "out"), text)
    say(f"written: {out}")


reproduce = flags.with_signature(
    _reproduce,
    [
        inspect.Parameter(
            "cell",
            inspect.Parameter.POSITIONAL_ONLY,
            default=None,
            annotation=Annotated[
                str | None, Parameter(name="CELL", help="a cell; none: list them")
            ],
        ),
        flags.keyword("data", flags.flag(str | None, "its data [default: by name]")),
        flags.keyword(
            "numerics",
            flags.flag(
                Literal["float32", "tf32", "bf16", "float64"] | None,
                "of the whole cell [default: the cell's]",
            ),
        ),
        flags.keyword("records", flags.flag(Path | None, "ledger to add the records to")),
        flags.keyword("ledger", flags.flag(Path | None, "write the table of this ledger instead")),
        flags.keyword(
            "out",
            flags.flag(Path | None, "file of that table (.json: its numbers) [default: print it]"),
        ),
        flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
        flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
        *flags.of_model(DataOptions, "options", "Data", skip=_READ_AS_EVER),
        *flags.of_model(Machine, "machine", "Machine"),
    ],
    "Make one number of the ledger again and say pass or fail; without CELL, list them.",
)
