"""How quick@1 was chosen: the cheapest schedule that judges as vico@1 does, out of the ledger.

    python benchmarks/calibration.py [results/records.jsonl]

prints the table of docs/protocols.md. A candidate is quick@1 with another number of epochs. It
judges alike if it orders every two of the rows below, whose 95 % intervals under vico@1 do not
touch, as vico@1 does, and if it keeps the gap of dm at 300 steps to random within 2 points. The
records are made by

    stillroom distill dm --data cifar10 --ipc 10 --steps 300 --keep every:100 --out out/dm
    stillroom evaluate out/dm --steps 100,300 --seeds 3 --baselines --protocol vico@1 \\
        --records results/records.jsonl

and the second command for every candidate.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.evaluation.protocol import find_protocol
from stillroom.evaluation.statistics import Summary
from stillroom.records import read_records
from stillroom.tables import Line, lines, percent
from stillroom.types import Record

TRUTH = "vico@1"
EPOCHS = (25, 50, 100)
ROWS = ("random", "class-mean", "k-means", "dm@100", "dm@300")
WITHIN = 0.02  # of the gap under vico@1
Rows = Mapping[str, Summary]


@dataclass(frozen=True)
class Candidate:
    """One protocol: its rows, the pairs that it orders otherwise than vico@1, and the gap."""

    protocol: str
    rows: Rows
    seconds: float
    wrong: tuple[tuple[str, str], ...]
    pairs: int
    gap: float
    off: float

    @property
    def alike(self) -> bool:
        """Whether it judges as vico@1 does."""
        return not self.wrong and abs(self.off) <= WITHIN


def calibration(records: Sequence[Record]) -> list[Candidate]:
    """Every candidate of which the ledger holds all rows, cheapest first, then vico@1 itself."""
    found: dict[str, dict[str, Line]] = {}
    for line in lines(records):
        known = (line.conditions.benchmark, line.conditions.ipc, line.arch, line.numerics)
        if known == ("cifar10", 10, "convnet3", "float32") and line.row in ROWS:
            found.setdefault(line.conditions.protocol_hash, {})[line.row] = line
    wanted = [find_protocol(f"quick@1+epochs={n}") for n in EPOCHS] + [find_protocol(TRUTH)]
    truth = {name: line.summary for name, line in found[wanted[-1].digest()].items()}
    made = []
    for protocol in wanted:
        rows = found.get(protocol.digest(), {})
        if set(rows) == set(ROWS):
            seconds = sum(line.seconds for line in rows.values()) / len(rows)
            summaries = {name: line.summary for name, line in rows.items()}
            made.append(_candidate(protocol.id, summaries, truth, seconds))
    return made


def chosen(candidates: Sequence[Candidate]) -> str:
    """The cheapest that judges as vico@1 does."""
    return next(c.protocol for c in candidates if c.alike)


def _candidate(name: str, rows: Rows, truth: Rows, seconds: float) -> Candidate:
    sure = [(a, b) for a, b in itertools.combinations(ROWS, 2) if truth[a].separate_from(truth[b])]
    wrong = tuple(
        (a, b)
        for a, b in sure
        if (rows[a].mean - rows[b].mean) * (truth[a].mean - truth[b].mean) <= 0
    )
    gap, real = (some["dm@300"].mean - some["random"].mean for some in (rows, truth))
    return Candidate(name, rows, seconds, wrong, len(sure), gap, gap - real)


def table(candidates: Sequence[Candidate]) -> str:
    """The Markdown table."""
    head = ("protocol", *ROWS, "dm@300 - random", "off vico@1", "pairs in order", "alike")
    text = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for c in candidates:
        means = (percent(c.rows[row].mean) for row in ROWS)
        order = f"{c.pairs - len(c.wrong)} of {c.pairs}"
        gaps = (percent(c.gap, sign=True), percent(c.off, sign=True))
        cells = (f"`{c.protocol}`", *means, *gaps, order, "yes" if c.alike else "no")
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "results/records.jsonl")
    made = calibration(read_records(path))
    print(table(made))
    print("\nseconds a student:", ", ".join(f"{c.protocol} {c.seconds:.0f}" for c in made))
    print("cheapest that judges alike:", chosen(made))
