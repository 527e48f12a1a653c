"""The ledger's cells: what is reproduced, under which protocol, against which reported number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.evaluation.statistics import Summary
from stillroom.reported import reported
from stillroom.tables import Line, lines
from stillroom.types import Record

TOLERANCE = {1: 0.025}  # of a mean, by images a class; the specification's, section 10
USUAL_TOLERANCE = 0.015


@dataclass(frozen=True)
class Cell:
    """One number that `stillroom reproduce` makes again.

    `name` is `<preset>/<benchmark>-ipc<k>`, with `@steps` where a run is shorter than the paper's,
    which is then shown beside the reported number but is no test of it. `students` are seeds, or
    draws of a random set.
    """

    preset: str
    benchmark: str
    ipc: int
    protocol: str = "vico@1"
    arch: str = "convnet3"
    steps: int | None = None
    students: int = 3

    @property
    def name(self) -> str:
        """What the cell is called."""
        ipc = f"-ipc{self.ipc}" if self.ipc else ""
        return f"{self.preset}/{self.benchmark}{ipc}" + (f"@{self.steps}" if self.steps else "")

    def reported(self) -> Record | None:
        """The paper's number, where there is one for this protocol."""
        for r in reported():
            same = (r.row, r.benchmark, r.ipc, r.arch)
            if same == (self.preset, self.benchmark, self.ipc, self.arch):
                return r
        return None

    def measured(self, records: Sequence[Record]) -> list[Line]:
        """The rows of a ledger that measure this cell, one for each numerics."""
        mine = [
            r
            for r in records
            if (r.benchmark, r.ipc, r.arch, r.protocol)
            == (self.benchmark, self.ipc, self.arch, self.protocol)
        ]
        return [line for line in lines(mine) if self._is(line)]

    def _is(self, line: Line) -> bool:
        if self.preset == "random":
            return line.drawn and line.row == "random"
        if line.counts != "seeds":
            return False
        if self.steps is not None or self.preset not in ("herding", "k-means", "class-mean"):
            return line.row == (f"{self.preset}@{self.steps}" if self.steps else self.preset)
        return line.row == self.preset

    def verdict(self, mean: float) -> str:
        """Whether a mean is the paper's, in a word."""
        paper = self.reported()
        if paper is None:
            return "nothing reported"
        if paper.protocol != self.protocol.partition("+")[0]:
            return "other protocol"
        if self.steps is not None:
            return "fewer steps"
        near = abs(mean - paper.value) <= TOLERANCE.get(self.ipc, USUAL_TOLERANCE)
        return "reproduced" if near else "not reproduced"


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("random", "cifar10", 1, students=5),
        Cell("class-mean", "cifar10", 1),
        Cell("dm", "cifar10", 1, steps=1000),
        Cell("random", "cifar10", 10, students=5),
        Cell("herding", "cifar10", 10),
        Cell("k-means", "cifar10", 10),
        Cell("class-mean", "cifar10", 10),
        Cell("dm", "cifar10", 10, steps=100),
        Cell("dm", "cifar10", 10, steps=300),
        Cell("dm", "cifar10", 1),
        Cell("dm", "cifar10", 10),
        Cell("full", "cifar10", 0, protocol="vico@1+epochs=10", students=1),
    )
}


def agrees(new: Summary, old: Summary) -> bool:
    """Whether a number made again is the recorded one: the 95 % intervals touch.

    A single number has no interval; it agrees if it lies in the other's.
    """
    if new.half is None and old.half is None:
        return abs(new.mean - old.mean) <= USUAL_TOLERANCE
    if new.half is None:
        return old.low <= new.mean <= old.high
    if old.half is None:
        return new.low <= old.mean <= new.high
    return not new.separate_from(old)
