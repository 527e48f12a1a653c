"""Records -> rows of a table: mean, interval, n, the gaps to the baselines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from stillroom.errors import StillroomError
from stillroom.evaluation.statistics import Paired, Summary, paired, summarise
from stillroom.types import Record


class Conditions(NamedTuple):
    """What two rows must share to stand in one comparison."""

    arch: str
    protocol: str
    protocol_hash: str
    numerics: str
    benchmark: str
    data_digest: str
    split: str
    selection: str
    source: str
    ipc: int
    augment: str
    taught: str


Key = tuple[str, int | None, str, Conditions]  # row, step (None: a baseline), set, conditions
DRAWN = "draws"  # in place of a set: random draws are one row
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

    `counts` is what n counts: students' "seeds", "draws" of random images, or "distillations".
    `bytes`, `label_bytes` and `teacher_bytes` are those of the records, apart; `shipped` is all.
    `values` are the single numbers in the ledger's order; `set_keys` the images that they were
    trained on, `order` the place of its first number in the ledger.
    `gap` is to random draws, `rival` the best of the coreset baselines with the gap to it.
    `family` and `set_seed` are those of the records; lines that share both are one set, made again.
    """

    row: str
    arch: str
    protocol: str
    numerics: str
    summary: Summary
    counts: str
    bytes: int
    seconds: float
    memory: int
    gap: float | None
    separate: bool | None
    conditions: Conditions
    values: tuple[float, ...] = ()
    step: int | None = None
    order: int = 0
    set_keys: frozenset[str] = frozenset()
    rival: Rival | None = None
    family: str = ""
    set_seed: int | None = None
    label_bytes: int = 0
    teacher_bytes: int = 0

    @property
    def shipped(self) -> int:
        """Bytes of everything that a student needs: images, labels and teachers."""
        return self.bytes + self.label_bytes + self.teacher_bytes

    @property
    def drawn(self) -> bool:
        """Whether n counts draws of random images, not seeds of students on one set."""
        return self.counts == "draws"

    @property
    def reported(self) -> bool:
        """Whether the numbers come out of a paper and were not measured here."""
        return self.conditions.source == "reported"


def lines(records: Sequence[Record]) -> list[Line]:
    """Group records of accuracy by row and by everything that they were measured under.

    Sorted by protocol and architecture, then best first. A baseline is a row of its own, even
    beside a set that has its name; the gaps are to baselines measured under the same conditions.
    Several sets of one name and step are distillations: a row each, and one over them.
    Raises: StillroomError if a student is there twice, which would count as two.
    """
    groups: dict[Key, list[Record]] = {}
    for r in records:
        if r.metric == "accuracy":
            groups.setdefault(_key(r), []).append(r)
    for group in groups.values():
        if len({(r.seed, r.draw) for r in group}) < len(group):
            raise StillroomError(f"{group[0].row}: records of one student twice; keep one of each")
    summaries = {key: summarise(_values(group)) for key, group in groups.items()}
    whole = [
        replace(_line(key, group, summaries[key], summaries), order=i)
        for i, (key, group) in enumerate(groups.items())
    ]
    whole += _over_distillations(groups, summaries)
    return sorted(whole, key=lambda line: (line.protocol, line.arch, -line.summary.mean))


def lines_of(records: Sequence[Record], known: Sequence[Record]) -> list[Line]:
    """The rows that `records` belong to, with the gaps to the baselines that `known` holds."""
    wanted = {
        (r.row, r.step, None if r.step is None else r.set_key, _conditions(r)) for r in records
    }
    return [
        line
        for line in lines(known)
        if line.counts != "distillations"
        and any(
            (line.row, line.step, None if line.step is None else key, line.conditions) in wanted
            for key in line.set_keys
        )
    ]


def _values(group: Sequence[Record]) -> list[float]:
    """One number a student; of random images one a draw, the mean of its students."""
    if group[0].draw is None:
        return [r.value for r in group]
    of: dict[int | None, list[float]] = {}
    for r in group:
        of.setdefault(r.draw, []).append(r.value)
    return [sum(some) / len(some) for some in of.values()]


def _key(r: Record) -> Key:
    """Students of one set are one row; a baseline is known by its name alone."""
    if r.draw is not None:
        return r.row, None, DRAWN, _conditions(r)
    return r.row, r.step, "" if r.step is None else r.set_key, _conditions(r)


def _line(key: Key, group: Sequence[Record], own: Summary, all_: Mapping[Key, Summary]) -> Line:
    row, step, _, conditions = key
    drawn = group[0].draw is not None
    random = None if drawn else all_.get(("random", None, DRAWN, conditions))
    return Line(
        row=row,
        arch=group[0].arch,
        protocol=group[0].protocol,
        numerics=group[0].numerics,
        summary=own,
        counts="draws" if drawn else "seeds",
        bytes=max(r.bytes for r in group),
        label_bytes=max(r.label_bytes for r in group),
        teacher_bytes=max(r.teacher_bytes for r in group),
        seconds=sum(r.seconds for r in group) / len(group),
        memory=max(r.memory for r in group),
        gap=None if random is None else own.mean - random.mean,
        separate=None if random is None else own.separate_from(random),
        values=tuple(_values(group)),
        step=step,
        set_keys=frozenset(r.set_key for r in group),
        conditions=conditions,
        family=group[0].family,
        set_seed=group[0].set_seed,
        rival=None if step is None else _rival(own, conditions, all_),
    )


def _over_distillations(
    groups: Mapping[Key, Sequence[Record]], summaries: Mapping[Key, Summary]
) -> list[Line]:
    """A row more for every set that was distilled several times: n counts distillations.

    One number a distillation, the mean of its students, so that students are no distillations; and
    one a seed: what a seed made again, on other threads say, is no other distillation. Students of
    all of them have the same seeds, whose luck the interval leaves out and that of a baseline does
    not; so it is said of no gap that intervals are apart.
    """
    same: dict[tuple[str, int, str, str, Conditions], list[Key]] = {}
    for key, group in groups.items():
        row, step, _, conditions = key
        family = group[0].family  # other settings are no distillations of the same
        if step is not None and family:
            same.setdefault((row, step, family, group[0].code, conditions), []).append(key)
    found = []
    for (row, step, _, _, conditions), keys in same.items():
        if len(keys) > 1:
            of_seed: dict[object, list[float]] = {}
            for key in keys:
                seed = groups[key][0].set_seed
                of_seed.setdefault(key if seed is None else seed, []).append(summaries[key].mean)
            if len(of_seed) == 1:
                continue
            means = [sum(some) / len(some) for some in of_seed.values()]
            students = [r for key in keys for r in groups[key]]
            whole = _line((row, step, "", conditions), students, summarise(means), summaries)
            rival = whole.rival and replace(whole.rival, separate=False)
            whole = replace(whole, counts="distillations", values=tuple(means), set_seed=None)
            found.append(replace(whole, separate=None, rival=rival))
    return found


def _rival(own: Summary, conditions: Conditions, all_: Mapping[Key, Summary]) -> Rival | None:
    """The best coreset under the same conditions, and how a row stands to it."""
    beside = {name: all_.get((name, None, "", conditions)) for name in CORESETS}
    found = {name: summary for name, summary in beside.items() if summary is not None}
    if not found:
        return None
    name = max(found, key=lambda name: found[name].mean)
    return Rival(name, own.mean - found[name].mean, own.separate_from(found[name]))


def compare(a: Sequence[Record], b: Sequence[Record]) -> Paired | None:
    """Compare two sets student by student of the same seed, under equal conditions.

    Raises: StillroomError if they were measured under different conditions, which it names, or if
    either holds more than one set.
    """
    mine = [r for r in a if r.metric == "accuracy"]
    other = [r for r in b if r.metric == "accuracy"]
    if any(len({r.set_key for r in side}) > 1 for side in (mine, other)):
        raise StillroomError("a comparison is of two sets, and one side holds several")
    conditions = {_conditions(r) for r in (*mine, *other)}
    if len(conditions) > 1:
        one, two, *_ = sorted(conditions)
        names = [n for n in Conditions._fields if getattr(one, n) != getattr(two, n)]
        raise StillroomError(f"the two sets were not judged alike: {', '.join(names)} differ")
    return paired({r.seed: r.value for r in mine}, {r.seed: r.value for r in other})


def other_labels(kinds: Sequence[str], names: Sequence[str]) -> str:
    """A warning where sets with labels of several kinds are compared, else nothing."""
    if len(set(kinds)) < 2:
        return ""
    told = ", ".join(f"{name} has {kind} labels" for name, kind in zip(names, kinds, strict=True))
    return f"{told}: a part of the difference may be the labels', not the images'"


def _conditions(r: Record) -> Conditions:
    return Conditions(**{name: getattr(r, name) for name in Conditions._fields})


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction as percent with one decimal; None as a dash."""
    if value is None:
        return "-"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"


def plural(count: int, noun: str) -> str:
    """Count and noun: "1 seed", "3 seeds", "2 classes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}es" if noun.endswith("s") else f"{count} {noun}s"


def span(s: Summary, joint: str = " to ") -> str:
    """The ends of the interval of an accuracy in percent, none where no accuracy can be."""
    if s.half is None:
        return ""
    return f"{percent(max(0.0, s.low))}{joint}{percent(min(1.0, s.high))}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "7.3 s", "2 min 27 s", "3 h 5 min", "4 days"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 2 * 86400:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 86400:.0f} days"


def about(seconds: float) -> str:
    """An estimate of a time, no finer than it is: "about 7 s", "about 40 min", "about 3 h"."""
    if seconds < 60:
        return f"about {max(1.0, seconds):.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"about {seconds / 3600:.0f} h"
    return f"about {seconds / 86400:.0f} days"


def size(count: int) -> str:
    """Bytes with a unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def read_size(text: str) -> int:
    """A number of bytes as a person writes it: "30MB", "1.5 GB", "200kB", "4096".

    Raises: StillroomError.
    """
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([kMGT]?)B?", text.strip())
    count = 0 if found is None else float(found[1]) * 1000 ** " kMGT".index(found[2] or " ")
    if not 1 <= count < 2**62:
        raise StillroomError(f"{text[:40]!r} is no number of bytes; write 30MB, 1.5GB or 4096")
    return int(count)
