"""Records -> rows of a table: mean, interval, n, the gaps to the baselines. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillroom.evaluation.statistics import Summary, summarise
from stillroom.types import Record

Conditions = tuple[str, str, str, str, str, str, str, str, str]
Key = tuple[str, bool, int | None, Conditions]  # row, drawn, step (None: a baseline), conditions
CORESETS = ("class-mean", "k-means")  # what `--baselines` judges beside random draws


@dataclass(frozen=True)
class Rival:
    """A row that another is compared with: its name, the gap to it, and whether that is shown."""

    row: str
    gap: float
    separate: bool


@dataclass(frozen=True)
class Line:
    """One line of a table: all students of one row on one architecture.

    `counts` is what n counts: students' "seeds", or "draws" of random images. `values` are the
    single accuracies in the ledger's order; `set_keys` the images that they were trained on.
    `gap` is to random draws, `rival` the best of the coreset baselines with the gap to it.
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
    rival: Rival | None = None

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

    Sorted by architecture, then best first. A baseline is a row of its own, even beside a set
    that has its name; the gaps are to baselines measured under the same conditions.
    """
    groups: dict[Key, list[Record]] = {}
    for r in records:
        if r.metric == "accuracy":
            groups.setdefault((r.row, r.draw is not None, r.step, _conditions(r)), []).append(r)
    summaries = {key: summarise([r.value for r in group]) for key, group in groups.items()}
    table = []
    for key, group in groups.items():
        row, drawn, step, conditions = key
        own = summaries[key]
        random = None if drawn else summaries.get(("random", True, None, conditions))
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
                step=step,
                set_keys=frozenset(r.set_key for r in group),
                conditions=conditions,
                rival=None if step is None else _rival(own, conditions, summaries),
            )
        )
    return sorted(table, key=lambda line: (line.arch, -line.summary.mean))


def _rival(own: Summary, conditions: Conditions, all_: Mapping[Key, Summary]) -> Rival | None:
    """The best coreset under the same conditions, and how a row stands to it."""
    beside = {name: all_.get((name, False, None, conditions)) for name in CORESETS}
    found = {name: summary for name, summary in beside.items() if summary is not None}
    if not found:
        return None
    name = max(found, key=lambda name: found[name].mean)
    return Rival(name, own.mean - found[name].mean, own.separate_from(found[name]))


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
