"""How quick@1 was chosen: the cheapest schedule that judges as vico@1 does, out of the ledger.

    python benchmarks/calibration.py [results/records.jsonl]

prints the tables of docs/protocols.md. A candidate is quick@1 with another number of epochs. It
judges alike if

- on CIFAR-10 at 10 images a class, and on the digits at 1 and 5, it orders every two rows whose
  95 % intervals under vico@1 do not touch as vico@1 does, and
- on CIFAR-10 it keeps the gap of dm at 300 steps to random within 2 points.

The records are made, for vico@1 and for every candidate, by

    stillroom evaluate out/dm --steps 100,300 --seeds 3 --baselines --protocol NAME \\
        --records results/records.jsonl
    stillroom evaluate results/sets/dm-digits-ipc1 --data digits --seeds 3 --baselines \\
        --protocol NAME --records results/records.jsonl     (and -ipc5)

where out/dm is the set of

    stillroom distill dm --data cifar10 --ipc 10 --steps 300 --keep every:100 --out out/dm
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.evaluation.published import find_protocol
from stillroom.records import read_records
from stillroom.tables import Line, lines, percent
from stillroom.types import Record

TRUTH = "vico@1"
EPOCHS = (25, 50, 100)
WITHIN = 0.02  # of the gap under vico@1, on the first of these
CASES = {
    ("cifar10", 10): ("random", "class-mean", "k-means", "dm@100", "dm@300"),
    ("digits", 1): ("random", "class-mean", "k-means", "dm@300"),
    ("digits", 5): ("random", "class-mean", "k-means", "dm@300"),
}
Case = tuple[str, int]
Rows = Mapping[str, Line]


@dataclass(frozen=True)
class Verdict:
    """One protocol on one case: its rows, the sure pairs, and those that it orders otherwise."""

    rows: Rows
    pairs: int
    wrong: tuple[tuple[str, str], ...]
    gap: float
    off: float


@dataclass(frozen=True)
class Candidate:
    """One protocol on all cases."""

    protocol: str
    on: Mapping[Case, Verdict]

    @property
    def alike(self) -> bool:
        """Whether it judges as vico@1 does."""
        first = next(iter(self.on.values()))
        return abs(first.off) <= WITHIN and not any(v.wrong for v in self.on.values())


def calibration(records: Sequence[Record]) -> list[Candidate]:
    """Every candidate of which the ledger holds all rows, cheapest first, then vico@1 itself."""
    found: dict[tuple[str, Case], dict[str, Line]] = {}
    for line in lines(records):
        case = (line.conditions.benchmark, line.conditions.ipc)
        bare = line.conditions.augment == "none"  # as students of dc see baselines
        if line.numerics == "float32" and not bare and line.row in CASES.get(case, ()):
            found.setdefault((line.conditions.protocol_hash, case), {})[line.row] = line
    made = []
    for name in (*(f"quick@1+epochs={n}" for n in EPOCHS), TRUTH):
        protocol, truth = find_protocol(name), find_protocol(TRUTH).digest()
        rows = {case: found.get((protocol.digest(), case), {}) for case in CASES}
        if all(set(rows[case]) == set(CASES[case]) for case in CASES):
            on = {case: _verdict(rows[case], found[truth, case]) for case in CASES}
            made.append(Candidate(protocol.id, on))
    return made


def chosen(candidates: Sequence[Candidate]) -> str:
    """The cheapest that judges as vico@1 does."""
    return next(c.protocol for c in candidates if c.alike)


def _verdict(rows: Rows, truth: Rows) -> Verdict:
    def mean(some: Rows, name: str) -> float:
        return some[name].summary.mean

    sure = [
        (a, b)
        for a, b in itertools.combinations(truth, 2)
        if truth[a].summary.separate_from(truth[b].summary)
    ]
    wrong = tuple(
        (a, b)
        for a, b in sure
        if (mean(rows, a) - mean(rows, b)) * (mean(truth, a) - mean(truth, b)) <= 0
    )
    gap, real = (mean(some, "dm@300") - mean(some, "random") for some in (rows, truth))
    return Verdict(rows, len(sure), wrong, gap, gap - real)


def table(candidates: Sequence[Candidate], case: Case) -> str:
    """The Markdown table of one case."""
    head = ("protocol", *CASES[case], "dm@300 - random", "off vico@1", "sure pairs in order",
            "s a student")  # fmt: skip
    text = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for c in candidates:
        v = c.on[case]
        means = (percent(v.rows[row].summary.mean) for row in CASES[case])
        order = f"{v.pairs - len(v.wrong)} of {v.pairs}"
        gaps = (percent(v.gap, sign=True), percent(v.off, sign=True))
        seconds = f"{sum(x.seconds for x in v.rows.values()) / len(v.rows):.0f}"
        text.append(f"| {' | '.join((f'`{c.protocol}`', *means, *gaps, order, seconds))} |")
    return "\n".join(text)


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "results/records.jsonl")
    all_ = calibration(read_records(path))
    for case in CASES:
        print(f"{case[0]}, {case[1]} images a class\n\n{table(all_, case)}\n")
    for c in all_:
        wrong = [f"{a} and {b} on {k[0]} {k[1]}" for k, v in c.on.items() for a, b in v.wrong]
        print(f"{c.protocol}: {'alike' if c.alike else 'not alike'} {', '.join(wrong)}")
    print("cheapest that judges alike:", chosen(all_))
