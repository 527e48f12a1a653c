"""The ledger's cells: what is reproduced, under which protocol, against which reported number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.config import DSA
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.score import FULL
from stillroom.evaluation.statistics import Summary
from stillroom.methods import PRESETS
from stillroom.recipe import from_preset
from stillroom.reported import reported, row_of
from stillroom.runtime import Numerics
from stillroom.standing import near, verdict
from stillroom.tables import Line, lines
from stillroom.types import Record

DISTILLATION = "distillation"  # the metric of a record that says how long a set took, in seconds
MODELS, SCHOOLING = 3, "default+epochs=5"  # originals that a CPU can train


@dataclass(frozen=True)
class Cell:
    """One number that `stillroom reproduce` makes again.

    `name` is `<preset>/<benchmark>-ipc<k>`, with `@steps` where the cell says how many, and with
    `:protocol` where that is not `vico@1`. A run shorter than the paper's is shown beside the
    reported number, but is no test of it. `steps` are those that are judged, the last one the
    length of the run; none: the preset's own. `students` are seeds, or
    draws of a random set. `numerics` is what distillation and students run in, unless the command
    says otherwise. With `clom`, its weight, the term is added, by `MODELS` originals of the arch
    trained as `SCHOOLING`; with `assess`, architectures, what held-out originals say of every set
    is measured too. `augment` is what students of a baseline see, under a protocol that leaves that
    to the set; in a name it stands behind the protocol where it is not DSA's. `method` are other
    values of the method than the recipe's, `outer` of the loop beside the steps. `teachers` are the
    networks whose labels students get, under a protocol of teachers, trained as `taught` says. With
    `zca` all of it is of whitened images.
    """

    preset: str
    benchmark: str
    ipc: int
    protocol: str = "vico@1"
    arch: str = "convnet3"
    steps: tuple[int, ...] = ()
    students: int = 3
    numerics: Numerics = "float32"
    clom: float | None = None
    assess: tuple[str, ...] = ()
    augment: str = DSA
    method: Mapping[str, Any] = field(default_factory=dict)
    outer: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    taught: str = "default"
    zca: bool = False

    @property
    def label(self) -> str:
        """The preset, and what was added to it."""
        return self.preset + ("" if self.clom is None else "+clom")

    @property
    def name(self) -> str:
        """What the cell is called."""
        ipc = f"-ipc{self.ipc}" if self.ipc else ""
        name = f"{self.label}/{self.benchmark}{ipc}" + (f"@{self.steps[-1]}" if self.steps else "")
        family = self.protocol.partition("@")[0]
        seen = "" if self.augment == DSA else f"-{self.augment}"
        return name if family == "vico" else f"{name}:{family}{seen}"

    @property
    def rows(self) -> tuple[str, ...]:
        """What tables call what is judged: the preset, with every step where it runs any."""
        if self.preset == FULL:
            return (FULL,)
        steps = self.steps or (self._published_steps(),)
        return tuple(f"{self.label}@{s}" if s else self.label for s in steps)

    def _published_steps(self) -> int:
        recipe, _ = from_preset(self.preset, self.benchmark, self.ipc, {}, self.benchmark)
        return recipe.method.steps(recipe.outer)

    def given(self) -> dict[str, Any]:
        """What it asks of a recipe beyond the published one, but for numerics."""
        given: dict[str, Any] = {"arch": self.arch}
        if self.steps:
            given["outer"] = {**self.outer, "steps": self.steps[-1], "keep": list(self.steps)}
        if self.method:
            given["method"] = dict(self.method)
        if self.clom is not None:
            term = {"kind": "clom", "weights": [self.clom], "num": MODELS, "schooling": SCHOOLING}
            given["regularisers"] = [term]
        return given

    def reported(self) -> Record | None:
        """The paper's number, under whichever protocol: `verdict` looks at that.

        Papers report baselines with hard labels: of one that teachers label there is none.
        """
        if self.teachers and PRESETS[self.preset].kind == "selection":
            return None
        for r in reported():
            same = (r.row, r.benchmark, r.ipc, r.arch)
            if same == (row_of(self.label), self.benchmark, self.ipc, self.arch):
                return r
        return None

    def measured(self, records: Sequence[Record], row: str | None = None) -> list[Line]:
        """The rows of a ledger that measure this cell, one for each numerics and data.

        `row` is one of `rows`, by default the last, which is the cell's number. Of a set that was
        distilled several times it is the row over the distillations.
        Of one that was made again it is the first; see `made_again`.
        Raises: StillroomError if the ledger holds two different ones.
        """
        return [self._one(some) for some in self._alike(records, row)]

    def made_again(self, records: Sequence[Record], first: Line) -> list[Line]:
        """The rows that measure the same recipe and seed as `first`, in the ledger's order.

        Another machine or another version of the code makes other bytes of it.
        """
        found = [line for some in self._alike(records, first.row) for line in some]
        return [line for line in found if line.order != first.order and _remade(line, first)]

    def _alike(self, records: Sequence[Record], row: str | None = None) -> list[list[Line]]:
        """Rows by numerics, data and whose labels students had, in the ledger's order."""
        digest = find_protocol(self.protocol).digest()
        wanted = (self.benchmark, self.ipc, self.arch, digest, "measured", row or self.rows[-1])
        found: dict[tuple[str, str, str], list[Line]] = {}
        for line in lines(records):
            of = line.conditions
            held = (of.benchmark, of.ipc, of.arch, of.protocol_hash, of.source, line.row)
            if held != wanted or line.drawn != (self.preset == "random"):
                continue
            if line.step is None and self.preset != FULL and of.augment != self._seen():
                continue
            found.setdefault((line.numerics, of.data_digest, of.taught), []).append(line)
        return [sorted(some, key=lambda line: line.order) for some in found.values()]

    def _seen(self) -> str:
        """What students of a baseline are trained with."""
        given = find_protocol(self.protocol).augment
        return self.augment if given == "set" else given

    def _one(self, some: Sequence[Line]) -> Line:
        whole = [line for line in some if line.counts == "distillations"] or some
        if not all(_remade(line, whole[0]) for line in whole[1:]):
            raise StillroomError(
                f"the ledger holds {len(whole)} rows for {self.name} ({whole[0].numerics}) that "
                "are no distillations of one thing; keep one of them"
            )
        return whole[0]

    def verdict(self, measured: Summary) -> str:
        """Whether what was measured is the paper's number, in a word; see `standing.verdict`."""
        shorter = bool(self.steps) and self.steps[-1] < self._published_steps()
        departure = "fewer steps" if shorter else ""
        drawn = self.preset == "random"
        return verdict(self.reported(), self.protocol, measured, departure, drawn)


def _remade(line: Line, first: Line) -> bool:
    """Whether two rows are of one recipe and one seed."""
    of = (first.family, first.set_seed)
    return bool(first.family) and first.set_seed is not None and (line.family, line.set_seed) == of


QUARTERS = (250, 500, 1000)
HOUR = (1000, 2000, 4000, 6000)  # as many as an hour of two CPU cores allows in bf16
HELD_OUT = ("convnet2", "lenet")  # networks that no cell distils with
OBSERVERS = ("convnet3-bn", "convnet3", "convnet3-w32-bn")  # of the four stages on a CPU
LABELLED: dict[str, Any] = {
    "protocol": "edc-cifar10@1+epochs=300",
    "teachers": OBSERVERS,
    "taught": SCHOOLING,
}
STORED: dict[str, Any] = {**LABELLED, "protocol": "edc@1"}
_RECOVERED = {"observers": OBSERVERS, "schooling": SCHOOLING}
_BY_ONE = {"observers": OBSERVERS[:1], "schooling": SCHOOLING}
_FOLLOWED = {"experts": 20, "schooling": "mtt+epochs=3+numerics=bf16", "window": {"last": 2}}
_LOOKS = {"areas": {"beta": 1.0, "schooling": "default+epochs=5+numerics=bf16"}}
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
        Cell("dsa", "cifar10", 1, steps=(100, 250)),
        Cell("dsa", "cifar10", 1, steps=QUARTERS),
        Cell("random", "cifar10", 1, "vico-plain@1", students=5),
        Cell("class-mean", "cifar10", 1, "vico-plain@1"),
        Cell("dc", "cifar10", 1, "vico-plain@1", steps=(100, 250)),
        Cell("dc", "cifar10", 1, "vico-plain@1", steps=QUARTERS),
        Cell("random", "cifar10", 10, "quick@1", students=5, assess=HELD_OUT),
        Cell("class-mean", "cifar10", 10, "quick@1", assess=HELD_OUT),
        Cell("k-means", "cifar10", 10, "quick@1", assess=HELD_OUT),
        Cell("random", "cifar10", 10, "quick@1", students=5, augment="none"),
        Cell("class-mean", "cifar10", 10, "quick@1", augment="none"),
        Cell("k-means", "cifar10", 10, "quick@1", augment="none"),
        # Half an hour and more on two cores without bf16.
        Cell("dm", "cifar10", 10, "quick@1", steps=(90, 270, 540)),
        Cell("dsa", "cifar10", 10, "quick@1", steps=(10, 40, 80)),
        # CLOM over each method, a few minutes each: about four on two cores with AVX-512.
        Cell("dm", "cifar10", 10, "quick@1", steps=(180,), assess=HELD_OUT),
        Cell("dm", "cifar10", 10, "quick@1", steps=(160,), clom=2000, assess=HELD_OUT),
        Cell("dsa", "cifar10", 10, "quick@1", steps=(27,), assess=HELD_OUT),
        Cell("dsa", "cifar10", 10, "quick@1", steps=(27,), clom=5000, assess=HELD_OUT),
        Cell("dc", "cifar10", 10, "quick@1", steps=(27,), assess=HELD_OUT),
        Cell("dc", "cifar10", 10, "quick@1", steps=(27,), clom=1000, assess=HELD_OUT),
        # The decoupled methods, all with labels of the same teachers.
        Cell("random", "cifar10", 10, **LABELLED, students=5),
        Cell("k-means", "cifar10", 10, **LABELLED),
        Cell("rded", "cifar10", 10, **LABELLED, method=_BY_ONE),
        Cell("sre2l", "cifar10", 10, **LABELLED, method=_BY_ONE),
        Cell("gvbsm", "cifar10", 10, **LABELLED, method=_RECOVERED, steps=(1000,)),
        Cell("edc-paper", "cifar10", 10, **LABELLED, method=_RECOVERED),
        Cell("edc", "cifar10", 10, **LABELLED, method=_RECOVERED, steps=(1000,)),
        # The same with labels that are stored beside the set.
        Cell("random", "cifar10", 10, **STORED, students=5),
        Cell("k-means", "cifar10", 10, **STORED),
        Cell("class-mean", "cifar10", 10, **STORED),
        Cell("rded", "cifar10", 10, **STORED, method=_BY_ONE),
        Cell("edc", "cifar10", 10, **STORED, method=_RECOVERED, steps=(1000,)),
        # Trajectory matching: 20 experts of three epochs, which all of it shares.
        *(
            Cell(preset, "cifar10", 1, protocol, zca=True, students=students)
            for protocol in ("mtt@1", "datm@1", "edf@1")
            for preset, students in (("random", 5), ("class-mean", 3))
        ),
        *(
            Cell("dm", "cifar10", 1, protocol, zca=True, numerics="bf16", steps=(1000,), students=n)
            for protocol, n in (("mtt@1", 3), ("datm@1", 3), ("edf@1", 8))
        ),
        # As many steps as an hour of two cores with AVX-512 allows in float32; the last two
        # beside each other.
        Cell("mtt", "cifar10", 1, "mtt@1", zca=True, steps=(200, 400, 800, 1600), method=_FOLLOWED),
        Cell("datm", "cifar10", 1, "datm@1", zca=True, steps=(125, 250, 500), method=_FOLLOWED),
        # Its published step size is of a network of five layers.
        Cell(
            "edf",
            "cifar10",
            1,
            "edf@1",
            zca=True,
            steps=(250, 500, 1000),
            students=8,
            method={**_FOLLOWED, **_LOOKS},
            outer={"images": {"lr": 100.0}},
        ),
        Cell("full", "cifar10", 0, protocol="vico@1+epochs=10", students=1),
    )
}


def distilling(line: Line, records: Sequence[Record]) -> float | None:
    """Seconds that the sets of a row took to make, by the ledger; None if it does not say."""
    some = [r.value for r in records if r.metric == DISTILLATION and r.set_key in line.set_keys]
    return sum(some) / len(some) if some else None


def agrees(new: Summary, old: Summary, ipc: int) -> bool:
    """Whether a number made again is the recorded one.

    Its mean lies within the cell's tolerance, and the 95 % intervals, where there are two, touch.
    """
    return near(new.mean, old.mean, ipc) and not new.separate_from(old)
