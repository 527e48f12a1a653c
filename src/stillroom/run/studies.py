"""What several cells answer together: CLOM over each method, and what predicts accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stillroom.config import DSA
from stillroom.evaluation.statistics import correlation, rank_correlation, summarise
from stillroom.records import NETWORK_ACCURACY
from stillroom.run.cells import CELLS, HELD_OUT, MODELS, SCHOOLING, Cell, distilling
from stillroom.tables import Line, compare, percent, plural, size, span
from stillroom.types import Record

ACCURACY = "original-model-accuracy"


def clom_study(records: Sequence[Record]) -> str:
    """The section of REPRODUCTION.md: every method with and without the term; empty if none is."""
    pairs = [(_plain(cell), cell) for cell in CELLS.values() if cell.clom is not None]
    both = [lines for plain, cell in pairs if plain for lines in _both(plain, cell, records)]
    rows = [_row(*lines, records) for lines in both]
    if not rows:
        return ""
    head = ("method", "protocol", "minutes, without and with", "without, %", "with CLOM, %",
            "difference, points", "p", "held-out original model, without and with, %")  # fmt: skip
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    return _TEXT + "\n".join(table) + "\n" + _predicts([x for two in both for x in two], records)


def taught_study(records: Sequence[Record]) -> str:
    """The section of REPRODUCTION.md on sets that the same networks label; empty if none is.

    The best first, and beneath them chosen real images of that size with their own hard labels.
    """
    cells = [cell for cell in CELLS.values() if cell.teachers]
    some = [(cell, line) for cell in cells for line in cell.measured(records)]
    if not some:
        return ""
    sizes = {(cell.benchmark, cell.ipc, line.numerics) for cell, line in some}
    chosen = [cell for cell in CELLS.values() if _chosen_hard(cell)]
    hard = [(cell, line) for cell in chosen for line in cell.measured(records)]
    hard = [(c, line) for c, line in hard if (c.benchmark, c.ipc, line.numerics) in sizes]
    for rows in (some, hard):
        rows.sort(key=lambda one: -one[1].summary.mean)
    head = ("set", "labels", "protocol", "accuracy, %", "n", "against random, points", "shipped")
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cell, line in [*some, *hard]:
        gap = "-" if line.gap is None else percent(line.gap, sign=True)
        star = " *" if line.separate else ""
        labels = " ".join(cell.teachers) if cell.teachers else "hard"
        n = plural(line.summary.n, line.counts.removesuffix("s"))
        row = (line.row, labels, cell.protocol, _mean(line), n, gap + star, size(line.shipped))
        table.append("| " + " | ".join(row) + " |")
    return _TAUGHT + "\n".join(table) + "\n"


def _chosen_hard(cell: Cell) -> bool:
    """Whether a cell is of chosen images under the usual protocol of hard labels."""
    return not (cell.teachers or cell.steps) and cell.ipc > 0 and cell.protocol == "vico@1"


def networks_table(records: Sequence[Record]) -> str:
    """The section of REPRODUCTION.md on networks trained on the real data; empty if none is."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for r in records:
        if r.metric == NETWORK_ACCURACY:
            found.setdefault((r.benchmark, r.arch, r.protocol, r.data_digest), []).append(r)
    if not found:
        return ""
    head = ("data", "network", "trained as", "test accuracy, %", "n", "seconds each")
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (benchmark, arch, how, _), some in found.items():
        s = summarise([r.value for r in some])
        interval = f" ({span(s)})" if s.half is not None else ""
        taken = sum(r.seconds for r in some) / len(some)
        row = (benchmark, arch, how, percent(s.mean) + interval, str(s.n), f"{taken:.0f}")
        table.append("| " + " | ".join(row) + " |")
    return _NETWORKS + "\n".join(table) + "\n"


def _plain(cell: Cell) -> Cell | None:
    """The cell without the term to compare with: the same, or one of as many minutes."""
    same = replace(cell, clom=None)
    like = (cell.preset, cell.benchmark, cell.ipc, cell.protocol, cell.arch, cell.numerics)
    if same.name in CELLS:
        return CELLS[same.name]
    others = [
        c
        for c in CELLS.values()
        if c.clom is None
        and c.assess
        and (c.preset, c.benchmark, c.ipc, c.protocol, c.arch, c.numerics) == like
    ]
    return others[0] if len(others) == 1 else None


def _both(plain: Cell, cell: Cell, records: Sequence[Record]) -> list[tuple[Line, Line]]:
    """What the ledger has without the term and with it, alike but for that."""
    found = []
    for added in cell.measured(records):
        steps = [line for row in plain.rows for line in plain.measured(records, row)]
        alike = [line for line in steps if line.conditions == added.conditions]
        if alike:
            found.append((_of_as_many_minutes(alike, added, records), added))
    return found


def _of_as_many_minutes(some: Sequence[Line], like: Line, records: Sequence[Record]) -> Line:
    """Of the judged steps of a run the one that took about as long; the last if none says it."""
    wanted = distilling(like, records)
    taken = [(distilling(line, records), line) for line in some]
    known = [(abs(t - wanted), i) for i, (t, _) in enumerate(taken) if t and wanted]
    return some[min(known)[1]] if known else some[-1]


def _row(bare: Line, added: Line, records: Sequence[Record]) -> tuple[str, ...]:
    gap = compare(_of(added, records), _of(bare, records))
    assert gap is not None  # both have the protocol's first seeds
    d = gap.difference
    between = ""
    if d.half is not None:
        between = f" ({percent(d.low, sign=True)} to {percent(d.high, sign=True)})"
    told = [_held_out(line, records) for line in (bare, added)]
    taken = [distilling(line, records) for line in (bare, added)]
    return (
        f"{bare.row}, {added.row}",
        added.protocol,
        ", ".join("-" if v is None else f"{v / 60:.0f}" for v in taken),
        _mean(bare),
        _mean(added),
        percent(d.mean, sign=True) + between,
        f"{gap.p:.2g}" if gap.p is not None else "-",
        ", ".join("-" if v is None else percent(v) for v in told),
    )


def _mean(line: Line) -> str:
    interval = f" ({span(line.summary)})" if line.summary.half is not None else ""
    return percent(line.summary.mean) + interval


def _of(line: Line, records: Sequence[Record]) -> list[Record]:
    """The students of a line."""
    return [
        r
        for r in records
        if r.metric == "accuracy"
        and r.set_key in line.set_keys
        and (r.row, r.arch, r.protocol_hash) == (line.row, line.arch, line.conditions.protocol_hash)
        and r.numerics == line.numerics
    ]


def _held_out(line: Line, records: Sequence[Record]) -> float | None:
    """What held-out original models make of a set: the mean over `HELD_OUT` and over draws.

    Not over all that somebody asked: the set's own network is not held out, and models that were
    trained otherwise answer another question. Of one that was asked again the newest answer counts.
    """
    asked = f"{MODELS} models trained as {SCHOOLING}"
    some = {
        (r.set_key, r.arch): r.value
        for r in records
        if r.metric == ACCURACY and r.set_key in line.set_keys and r.arch in HELD_OUT
        if r.note in ("", asked)
    }
    return sum(some.values()) / len(some) if some else None


def _predicts(made: Sequence[Line], records: Sequence[Record]) -> str:
    """How original-model accuracy goes with that of students, over the sets that have both.

    Of students that saw images augmented alike, as most of them did: augmentation is accuracy too;
    and of all.
    """
    seen = Counter(x.conditions.augment for x in made).most_common(1)[0][0]
    every = {x.set_keys: x for x in made}
    distilled = {key: x for key, x in every.items() if x.conditions.augment == seen}
    chosen = [x for c in CELLS.values() if c.assess and not c.steps for x in c.measured(records)]
    like = {(x.numerics, x.protocol) for x in made}
    chosen = [x for x in chosen if (x.numerics, x.protocol) in like]
    chosen = [x for x in chosen if x.conditions.augment == seen]
    kinds = [(f"distilled sets whose students saw {_seen(seen)}", list(distilled.values()))]
    if len(every) > len(distilled):
        kinds.append(("distilled sets, all of them", list(every.values())))
    if chosen:
        both = [*distilled.values(), *chosen]
        kinds.append(
            (f"sets whose students saw {_seen(seen)}, chosen real images among them", both)
        )
    told = "".join(_correlated(kind, some, records) for kind, some in kinds)
    return f"\n{told}" if told else ""


def _seen(augment: str) -> str:
    return {"none": "no augmentation", DSA: "DSA"}.get(augment, augment)


def _correlated(kind: str, some: Sequence[Line], records: Sequence[Record]) -> str:
    told = [(_held_out(line, records), line.summary.mean) for line in some]
    points = [(held, mean) for held, mean in told if held is not None]
    if len(points) < 4:
        return ""
    x, y = zip(*points, strict=True)
    r, low, high = correlation(x, y)
    rank, *_ = rank_correlation(x, y)
    return (
        f"Over {len(points)} {kind}, of one size, the accuracy of held-out original models and "
        f"that of students correlate with r = {r:.2f} (95 % interval {low:.2f} to {high:.2f}; "
        f"ranks {rank:.2f}).\n"
    )


_TAUGHT = """
## Labels of the same networks

Sets whose students learn what the same networks, trained on the real data, say of every view; and
chosen real images of that size with hard labels, under a protocol of theirs. *Against random*: the
gap to random images under the same labels and protocol, with a star where the two intervals do not
touch. *Shipped* counts images and networks.

"""
_NETWORKS = """
## Networks trained on the real data

Those that a term, an assessment or a method asks, from `prepare originals --records FILE`;
seconds as they were taken, other work beside them. Intervals are over networks.

"""
_TEXT = """
## With and without CLOM

Every method with the term and without it, in about equal minutes of distilling, the training of
the term's own models not counted. Differences are of
students of one seed (paired t test): they are about these two sets, each distilled once, not about
the methods. The last column is the accuracy on the images of a set of
networks that were trained on the real data and that no method used.

"""
