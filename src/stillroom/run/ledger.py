"""What the ledger holds of the cells: `REPRODUCTION.md`, and the summary inside the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources

from stillroom.evaluation.statistics import Summary, summarise
from stillroom.run.cells import CELLS, Cell, agrees, distilling
from stillroom.run.studies import clom_study, networks_table, taught_study
from stillroom.tables import Line, percent, plural, span
from stillroom.types import Record

MEASURED = "measured.json"  # beside the recipes: what the ledger holds of every cell


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
    cells = [f"{json.dumps(name)}: {json.dumps(held)}" for name, held in found.items()]
    return "{\n" + ",\n".join(cells) + "\n}\n"  # a line a cell


def reproduction(records: Sequence[Record]) -> str:
    """`REPRODUCTION.md`: reported beside measured, cell by cell."""
    rows = [row for cell in CELLS.values() for row in _rows(cell, records)]
    head = ("cell", "protocol", "reported, %", "measured, %", "n", "gap", "vs random", "verdict",
            "how")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return (
        _INTRODUCTION
        + "\n".join(lines)
        + "\n"
        + _notes()
        + "".join(study(records) for study in (clom_study, taught_study, networks_table))
    )


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
        value, n, beside, how = _measured(line, records)
        verdict = cell.verdict(line.summary)
        rows.append((f"`{cell.name}`", cell.protocol, told, value, n, gap, beside, verdict, how))
        for again in cell.made_again(records, line):
            value, n, beside, how = _measured(again, records)
            off = percent(again.summary.mean - mean, sign=True)
            same = "agrees" if agrees(again.summary, line.summary, cell.ipc) else "does not agree"
            verdict = f"{same} with the row above ({off})"
            rows.append(("... made again", cell.protocol, "", value, n, "", beside, verdict, how))
    for name in cell.rows[:-1]:  # the curve on the way
        for line in cell.measured(records, name):
            value, n, beside, how = _measured(line, records)
            step = f"... at step {name.rpartition('@')[2]}"
            rows.append((step, cell.protocol, "", value, n, "", beside, "", how))
    return rows


def _measured(line: Line, records: Sequence[Record]) -> tuple[str, str, str, str]:
    """Of one row: mean and interval, n, the gap to random (a star: intervals apart), how."""
    s = line.summary
    interval = f" ({span(s)})" if s.half is not None else ""
    beside = percent(line.gap, sign=True) + (" *" if line.separate else "")
    data = "".join(filter(str.isalnum, line.conditions.data_digest[:8]))
    taken = distilling(line, records)
    made = "" if taken is None else f"made in {taken / 60:.0f} min, "
    how = f"{line.numerics}, {made}{line.seconds:.0f} s a student, data {data}"
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
that the paper does not say how it judged, or judged otherwise; *one student* is no test either.
*vs random* is the gap to random images under the same protocol and numerics, with a star where the
two intervals do not touch. *Made again* is the same recipe and seed distilled anew, on another
machine or by a later version.
`stillroom reproduce CELL --data DIR` makes a cell again and says whether it agrees with what is
measured here.

**The CIFAR-10 here is a copy whose images were re-encoded as JPEG**, the papers' is not: the same
classes, counts and order, slightly other pixels.

"""
