"""The ledger's cells: what is reproduced, under which protocol, against which reported number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import find_protocol
from stillroom.evaluation.score import FULL
from stillroom.evaluation.statistics import Summary
from stillroom.recipe import from_preset
from stillroom.reported import reported
from stillroom.runtime import Numerics
from stillroom.tables import Line, lines
from stillroom.types import Record

TOLERANCE = {1: 0.025}  # of a mean, by images a class; the specification's, section 10
USUAL_TOLERANCE = 0.015
SPREAD = 0.015  # the largest deviation of students that a reproduction may have; likewise


@dataclass(frozen=True)
class Cell:
    """One number that `stillroom reproduce` makes again.

    `name` is `<preset>/<benchmark>-ipc<k>`, with `@steps` where a run is shorter than the paper's,
    which is then shown beside the reported number but is no test of it. `steps` are those that are
    judged, the last one the length of the run; none: the preset's own. `students` are seeds, or
    draws of a random set. `numerics` is what distillation and students run in, unless the command
    says otherwise.
    """

    preset: str
    benchmark: str
    ipc: int
    protocol: str = "vico@1"
    arch: str = "convnet3"
    steps: tuple[int, ...] = ()
    students: int = 3
    numerics: Numerics = "float32"

    @property
    def name(self) -> str:
        """What the cell is called."""
        ipc = f"-ipc{self.ipc}" if self.ipc else ""
        return f"{self.preset}/{self.benchmark}{ipc}" + (f"@{self.steps[-1]}" if self.steps else "")

    @property
    def rows(self) -> tuple[str, ...]:
        """What tables call what is judged: the preset, with every step where it runs any."""
        if self.preset == FULL:
            return (FULL,)
        recipe, _ = from_preset(self.preset, self.benchmark, self.ipc, {}, self.benchmark)
        steps = self.steps or (recipe.method.steps(recipe.outer),)
        return tuple(f"{self.preset}@{s}" if s else self.preset for s in steps)

    def reported(self) -> Record | None:
        """The paper's number, under whichever protocol: `verdict` looks at that."""
        for r in reported():
            same = (r.row, r.benchmark, r.ipc, r.arch)
            if same == (self.preset, self.benchmark, self.ipc, self.arch):
                return r
        return None

    def measured(self, records: Sequence[Record], row: str | None = None) -> list[Line]:
        """The rows of a ledger that measure this cell, one for each numerics.

        `row` is one of `rows`, by default the last, which is the cell's number.
        Raises: StillroomError if the ledger holds two different ones for one numerics.
        """
        digest = find_protocol(self.protocol).digest()
        wanted = (self.benchmark, self.ipc, self.arch, digest, "measured", row or self.rows[-1])
        found: dict[str, Line] = {}
        for line in lines(records):
            of = line.conditions
            held = (of.benchmark, of.ipc, of.arch, of.protocol_hash, of.source, line.row)
            if held != wanted or line.drawn != (self.preset == "random"):
                continue
            old = found.setdefault(line.numerics, line)
            if old.set_keys != line.set_keys or old.conditions != line.conditions:
                raise StillroomError(
                    f"the ledger holds two rows for {self.name} ({line.numerics}); keep one of them"
                )
            if line.summary.n > old.summary.n:
                found[line.numerics] = line
        return list(found.values())

    def verdict(self, mean: float, std: float = 0.0) -> str:
        """Whether a mean is the paper's, in a word; `std` is that of the students behind it.

        Of random images it is that of draws too, for which no limit is set.
        """
        paper = self.reported()
        if paper is None:
            return "nothing reported"
        named, _, changed = self.protocol.partition("+")
        if paper.protocol != named:
            return "other protocol"
        if changed:
            return "fewer epochs"
        if self.steps:
            return "fewer steps"
        near = abs(mean - paper.value) <= TOLERANCE.get(self.ipc, USUAL_TOLERANCE)
        if near and std > SPREAD and self.preset != "random":
            return "students too far apart"
        return "reproduced" if near else "not reproduced"


HOUR = (1000, 2000, 4000, 6000)  # as many as an hour of two CPU cores allows in bf16
CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("random", "cifar10", 1, students=5),
        Cell("class-mean", "cifar10", 1),
        Cell("random", "cifar10", 10, students=5),
        Cell("herding", "cifar10", 10),
        Cell("k-means", "cifar10", 10),
        Cell("class-mean", "cifar10", 10),
        Cell("dm", "cifar10", 10, steps=(100, 300)),
        Cell("dm", "cifar10", 1, steps=HOUR, numerics="bf16"),
        Cell("dm", "cifar10", 10, steps=HOUR, numerics="bf16"),
        Cell("dm", "cifar10", 1),
        Cell("dm", "cifar10", 10),
        Cell("full", "cifar10", 0, protocol="vico@1+epochs=10", students=1),
    )
}


def agrees(new: Summary, old: Summary, ipc: int) -> bool:
    """Whether a number made again is the recorded one.

    Its mean lies within the cell's tolerance, and the 95 % intervals, where there are two, touch.
    """
    near = abs(new.mean - old.mean) <= TOLERANCE.get(ipc, USUAL_TOLERANCE)
    return near and not new.separate_from(old)
