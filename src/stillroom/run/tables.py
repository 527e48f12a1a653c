"""Records -> rows of a table: mean, interval, n, and the gap to random. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.evaluate.statistics import Summary, summarise
from stillroom.types import Record


@dataclass(frozen=True)
class Line:
    """One line of a table: all students of one row on one architecture."""

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


def lines(records: Sequence[Record]) -> list[Line]:
    """Group records of accuracy by row, architecture, protocol and numerics, best first."""
    groups: dict[tuple[str, str, str, str, str], list[Record]] = {}
    for r in records:
        if r.metric == "accuracy":
            key = (r.row, r.arch, r.protocol, r.protocol_hash, r.numerics)
            groups.setdefault(key, []).append(r)
    summaries = {key: summarise([r.value for r in group]) for key, group in groups.items()}
    table = []
    for key, group in groups.items():
        random = summaries.get(("random", *key[1:]))
        own = summaries[key]
        same = random is None or key[0] == "random"
        table.append(
            Line(
                row=key[0],
                arch=key[1],
                protocol=key[2],
                numerics=key[4],
                summary=own,
                counts="draws" if group[0].draw is not None else "seeds",
                bytes=max(r.bytes for r in group),
                seconds=sum(r.seconds for r in group) / len(group),
                gap=None if same or random is None else own.mean - random.mean,
                separate=None if same or random is None else own.separate_from(random),
            )
        )
    return sorted(table, key=lambda line: (line.arch, -line.summary.mean))


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
