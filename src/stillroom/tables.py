"""Records -> rows of a table: mean, interval, n, and the gap to random. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.evaluation.statistics import Summary, summarise
from stillroom.types import Record

Conditions = tuple[str, str, str, str, str, str, str, str, str]


@dataclass(frozen=True)
class Line:
    """One line of a table: all students of one row on one architecture.

    `counts` is what n counts: students' "seeds", or "draws" of random images. `values` are the
    single accuracies in the ledger's order; `set_keys` the images that they were trained on.
    """

    row: str
    arch: str
    protocol: str
    numerics: str
    summary: Summary
    counts: str
    bytes: int
    seconds: float
    gap: float | None
    separate: bool | None
    values: tuple[float, ...] = ()
    step: int | None = None
    set_keys: frozenset[str] = frozenset()
    conditions: Conditions = ("", "", "", "", "", "", "", "", "")

    @property
    def drawn(self) -> bool:
        """Whether n counts draws of random images, not seeds of students on one set."""
        return self.counts == "draws"

    @property
    def reported(self) -> bool:
        """Whether the numbers come out of a paper and were not measured here."""
        return self.conditions[8] == "reported"


def lines(records: Sequence[Record]) -> list[Line]:
    """Group records of accuracy by row and by everything that they were measured under.

    Sorted by architecture, then best first. Random draws are a row of their own, even beside a
    set that is called "random"; the gap is to the draws measured under the same conditions.
    """
    groups: dict[tuple[str, bool, Conditions], list[Record]] = {}
    for r in records:
        if r.metric == "accuracy":
            groups.setdefault((r.row, r.draw is not None, _conditions(r)), []).append(r)
    summaries = {key: summarise([r.value for r in group]) for key, group in groups.items()}
    table = []
    for key, group in groups.items():
        row, drawn, conditions = key
        own = summaries[key]
        random = None if drawn else summaries.get(("random", True, conditions))
        table.append(
            Line(
                row=row,
                arch=group[0].arch,
                protocol=group[0].protocol,
                numerics=group[0].numerics,
                summary=own,
                counts="draws" if drawn else "seeds",
                bytes=max(r.bytes for r in group),
                seconds=sum(r.seconds for r in group) / len(group),
                gap=None if random is None else own.mean - random.mean,
                separate=None if random is None else own.separate_from(random),
                values=tuple(r.value for r in group),
                step=group[-1].step,
                set_keys=frozenset(r.set_key for r in group),
                conditions=conditions,
            )
        )
    return sorted(table, key=lambda line: (line.arch, -line.summary.mean))


def _conditions(r: Record) -> Conditions:
    return (
        r.arch,
        r.protocol,
        r.protocol_hash,
        r.numerics,
        r.benchmark,
        r.data_digest,
        r.split,
        r.selection,
        r.source,
    )


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction as percent with one decimal; None as a dash."""
    if value is None:
        return "-"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"


def size(count: int) -> str:
    """Bytes with a unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
