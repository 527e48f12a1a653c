"""What an evaluation trains students on: a set and its kept steps, and what stands beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.artefacts.store import Store, obtain
from stillroom.config import DSA
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import label_bytes, load, set_bytes, set_digest
from stillroom.errors import StillroomError, TooFewImagesError
from stillroom.evaluation.score import FULL
from stillroom.files import canonical, sha256
from stillroom.methods.distil import Distil
from stillroom.nets.zoo import Arch
from stillroom.recipe import from_preset
from stillroom.run import machine as machines
from stillroom.run.options import Machine
from stillroom.run.publish import is_count, steps_of
from stillroom.runtime import Runtime
from stillroom.tables import CORESETS, plural
from stillroom.types import LabelKind

RANDOM_DRAWS = 5
JPEG_DRAWS = 3


@dataclass(frozen=True)
class Row:
    """One thing that students are trained on; what it is was read once, by `row_of`.

    `folder` is None for the full training data. `digest` identifies what students see, `family`
    the set's recipe but for its seed, which is `set_seed`, `augment` what the set wants students to
    be trained with, `labels` the kind of label that it has, `images` how many images. `bytes` are
    those of its images and hard labels, `label_bytes` of soft labels of its own.
    """

    name: str
    folder: Path | None = None
    ipc: int = 0
    step: int | None = None
    draw: int | None = None
    digest: str = FULL
    bytes: int = 0
    augment: str = DSA
    family: str = ""
    set_seed: int | None = None
    labels: LabelKind = "hard"
    images: int = 0
    label_bytes: int = 0


def row_of(
    name: str, folder: Path, ipc: int, step: int | None = None, draw: int | None = None
) -> Row:
    """The row of a set in a folder."""
    data = load(folder)
    recipe = data.provenance.get("recipe")
    family, seed = "", recipe.get("seed") if isinstance(recipe, dict) else None
    if isinstance(recipe, dict) and isinstance(seed, int) and 0 <= seed < 2**63:
        family = sha256(canonical({k: v for k, v in recipe.items() if k != "seed"}))[:16]
    soft, set_seed = label_bytes(folder), seed if family else None
    seen = (set_digest(folder), set_bytes(folder) - soft, data.augment, family)
    labels = (data.label_kind, len(data), soft)
    return Row(name, folder, ipc, step, draw, *seen, set_seed, *labels)


@dataclass(frozen=True)
class Maker:
    """How baselines are made: of the same data, and for students with the set's augmentation."""

    bench: Benchmark
    store: Store
    machine: Machine
    rt: Runtime
    arch: Arch
    augment: str

    def folder(self, rule: str, ipc: int, draw: int, storage: str = "auto") -> Path:
        """Where the set of a rule lies, made now if it is not there."""
        given: dict[str, Any] = {"seed": draw, "method": {"augment": self.augment}}
        given["storage"] = storage
        recipe, _ = from_preset(rule, self.bench.name, ipc, given, self.bench.known)
        stage = Distil(
            method=recipe.method,
            outer=recipe.outer,
            bench=self.bench.describe(),
            ipc=ipc,
            seed=draw,
            arch=self.arch,
            numerics="float32",
            storage=recipe.stored_as,
            store=self.store.root,
        )
        exact = replace(self.rt, numerics="float32")  # as the stage says, whatever students have
        obtain(self.store, stage, machines.executor(self.machine), exact)
        return self.store.folder(stage.key()) / "steps" / "0"


def baseline_rows(maker: Maker, ipc: int) -> list[Row]:
    """Random (five draws), class-mean and k-means with as many images.

    One that the data cannot give (a class has too few distinct images) is left out as a whole, and
    said so.
    """
    rows: list[Row] = []
    for rule in ("random", *CORESETS):
        draws = [*range(RANDOM_DRAWS)] if rule == "random" else [None]
        try:
            found = [
                row_of(rule, maker.folder(rule, ipc, draw or 0), ipc, None, draw) for draw in draws
            ]
        except TooFewImagesError as error:
            maker.rt.session.say(f"no {rule} row: {error}")
            continue
        rows += found
    return rows


def real_jpeg_rows(
    maker: Maker, ipc: int, budget: int, labels: Callable[[int], int] = lambda images: 0
) -> list[Row]:
    """Random real images kept as JPEG: as many as the set has, and as many as its bytes hold.

    labels(images): bytes of the labels of teachers that they get, which are part of the budget.

    Where the two counts are far apart, their geometric mean too. They are JPEGs of the images as
    they were decoded and resized here, and their bytes are those on disk, of every draw.
    """
    bench = maker.bench
    smallest = min(len(bench.train.rows_of(c)) for c in range(len(bench.classes)))
    ipc = min(ipc, smallest)

    def drawn(count: int) -> list[Row]:
        some = range(JPEG_DRAWS)
        return [
            row_of("random-jpeg", maker.folder("random", count, d, "jpeg"), count, None, d)
            for d in some
        ]

    def needed(count: int) -> int:
        return max(row.bytes + labels(row.images) for row in drawn(count))

    first = needed(ipc)
    if first > budget:
        told = (
            f"even {plural(ipc, 'JPEG')} a class take more bytes ({first}) than the set ({budget})"
        )
        maker.rt.session.say(f"random-jpeg: {told}; as many as fit beside it")
    fitting = min(smallest, max(1, ipc * budget // first))
    each = (needed(fitting) - first) / (fitting - ipc) if fitting != ipc else first / ipc
    fitting = min(smallest, max(1, fitting + int((budget - needed(fitting)) / each)))
    while fitting > 1 and needed(fitting) > budget:
        fitting -= max(1, int((needed(fitting) - budget) / each))
    between = round(math.sqrt(ipc * fitting))
    counts = sorted({ipc, max(1, fitting)} | ({between} if fitting >= 4 * ipc else set()))
    return [row for count in counts for row in drawn(count)]


def rows_of_set(folder: Path, steps: str) -> list[Row]:
    """The rows that `--steps` asks for: "last", "all", or "100,300".

    Raises: StillroomError naming the steps that exist.
    """
    data = load(folder)
    name = str(data.provenance.get("label") or folder.name)[:80]
    found = steps_of(folder)
    last = max(found)
    if steps == "last":
        chosen = [last]
    elif steps == "all":
        chosen = list(found)
    else:
        texts = [t.strip() for t in steps.split(",")]
        if not all(is_count(t) for t in texts):
            raise StillroomError(f"--steps {steps!r} must be last, all, or numbers such as 100,300")
        chosen = list(dict.fromkeys(int(t) for t in texts))
    missing = [s for s in chosen if s not in found]
    if missing:
        held = ", ".join(map(str, found))
        raise StillroomError(f"{folder} holds no set of step {missing[0]}; it holds {held}")
    return [row_of(f"{name}@{s}" if last else name, found[s], data.ipc, s) for s in chosen]
