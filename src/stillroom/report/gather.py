"""From folders to what the page shows: the set, its records, its loss curve, its machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from stillroom.artefacts.carried import Sizes, load, sizes
from stillroom.data.named import known
from stillroom.distilled import Distilled, set_digest
from stillroom.errors import StillroomError
from stillroom.evaluation.score import FULL
from stillroom.files import read_json, read_limited, user_path
from stillroom.methods.regularisers import Watchable
from stillroom.records import LEDGER, is_finite, read_records
from stillroom.report.exhibits import (
    Exhibit,
    Maps,
    Neighbours,
    read_exhibits,
    read_maps,
    read_neighbours,
)
from stillroom.reported import find
from stillroom.standing import departure, verdict
from stillroom.tables import Conditions, Line, lines
from stillroom.types import Record

MAX_SETS = 50
MAX_ROWS = 1000  # of the accuracies of one set
MAX_CURVE_BYTES = 16 * 2**20
WATCHED: tuple[str, ...] = get_args(Watchable)


@dataclass(frozen=True)
class Shown:
    """One set of the page.

    `name` is the folder's name and unique on the page, `key` the digest of the set, `keys` this and
    those of its kept steps, `stale` the number of records left out because they judge images that
    the folder holds no more, `metrics` the lines of `metrics.jsonl`, `run` those of `run.json`.
    `reported` are numbers of papers, which no mean here contains.
    """

    name: str
    data: Distilled
    sizes: Sizes
    key: str
    keys: frozenset[str]
    records: tuple[Record, ...]
    stale: int
    metrics: tuple[dict[str, float], ...]
    run: dict[str, Any]
    exhibits: tuple[Exhibit, ...]
    neighbours: Neighbours | None
    maps: Maps | None
    reported: tuple[Record, ...]

    @property
    def bytes(self) -> int:
        """Of the images, with metadata and hard labels."""
        return self.sizes.images

    @property
    def label(self) -> str:
        """What made the set, as its rows are called: "dm", "random", or the folder's name."""
        label = self.data.provenance.get("label")
        return label[:80] if isinstance(label, str) and label else self.name

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The table: best first inside each group of equal conditions."""
        return tuple(lines(self.records))

    def own(self, line: Line) -> bool:
        """Whether a line judges this set or a kept step of it, not a baseline."""
        return not line.drawn and bool(line.set_keys & self.keys)

    def watched(self) -> list[str]:
        """The assessments that were logged during the distillation."""
        return [name for name in WATCHED if any(name in point for point in self.metrics)]

    @cached_property
    def main(self) -> Line | None:
        """The line that the headline quotes: the set itself, on its own data and network.

        Of a set of which only kept steps were judged, the last of these.
        """
        mine = [line for line in self.lines if self.own(line) and not line.reported]
        if not mine:
            return None
        digest, arch = self.data.data.get("digest"), self.data.arch
        order = {(r.protocol_hash, r.taught): i for i, r in enumerate(self.records)}
        beside_random = {x.conditions for x in self.lines if x.drawn}

        recipe = self.data.provenance.get("recipe")
        numerics = recipe.get("numerics") if isinstance(recipe, dict) else "float32"

        # Never by the accuracy: that would choose on the test images.
        def rank(line: Line) -> tuple[bool, int, bool, bool, bool, int, bool, int, int]:
            return (
                self.key in line.set_keys,
                -1 if line.step is None else line.step,
                line.conditions.data_digest == digest,
                line.arch == arch,
                line.conditions in beside_random,
                order[line.conditions.protocol_hash, line.conditions.taught],
                line.numerics == numerics,
                line.summary.n,
                -line.order,
            )

        return max(mine, key=rank)

    def beside(self, line: Line) -> list[Line]:
        """The baselines measured under the same conditions as `line`, random first."""
        found = [x for x in self.lines if _alike(x, line) and not self.own(x) and x is not line]
        return sorted(found, key=lambda x: (not _is_random(x), not x.drawn, x.row))

    @cached_property
    def random(self) -> Line | None:
        """Random draws of as many images as the set, judged as the headline was."""
        return (
            next((x for x in self.beside(self.main) if _is_random(x)), None) if self.main else None
        )

    def here(self, paper: Record) -> tuple[Line | None, str]:
        """The row of a paper's method, as the headline was judged, and how it stands to it.

        See `standing.verdict`; it is a test of the paper's number only if it is one of `TESTS`.
        """
        some = [*self.beside(self.main), self.main] if self.main else []
        digest = self.data.data.get("digest")  # what it was judged on may be other data
        same = [
            x
            for x in some
            if (x.arch, x.conditions.data_digest) == (paper.arch, digest)
            and x.row.partition("@")[0] == paper.row
        ]
        line = next(iter(same), None)
        if line is None:
            return None, ""
        off = departure(self.data.provenance.get("recipe"), self.data.data, paper, line.step)
        return line, verdict(paper, line.protocol, line.summary, off, line.drawn)

    def any_size(self, row: str | None = None) -> list[Line]:
        """Baselines of any number of images, judged as the headline was; those of one row."""
        found = [x for x in self.lines if self.main and not self.own(x)]
        same = [x for x in found if self.main and unsized(x) == unsized(self.main)]
        return [x for x in same if row in (None, x.row)]

    def exhibit(self, line: Line | None) -> Exhibit | None:
        """What the students of a line took for what, if that is known."""
        return next((e for e in self.exhibits if line and e.belongs_to(line)), None)

    def networks(self) -> dict[str, dict[str, Line]]:
        """The rows of the headline on every network: row -> network -> line; the set's is first."""
        main = self.main
        if main is None:
            return {}
        found: dict[str, dict[str, Line]] = {main.row: {}}
        for line in self.lines:
            mine = _same_row(line, main) if self.own(line) else line.row != main.row
            if mine and line.conditions._replace(arch=main.arch) == main.conditions:
                found.setdefault(line.row, {})[line.arch] = line
        return found

    def under(self, rule: str) -> tuple[Line | None, Line | None]:
        """The lines of the headline and of random, as another rule selects their numbers."""
        main = self.main
        if main is None:
            return None, None
        metric = "accuracy" if rule == main.conditions.selection else f"accuracy.{rule}"
        same = [replace(r, metric="accuracy") for r in self.records if r.metric == metric]
        wanted = main.conditions._replace(selection=rule)
        found = [x for x in lines(same) if x.conditions == wanted]
        own = next((x for x in found if self.own(x) and _same_row(x, main)), None)
        return own, next(filter(_is_random, found), None)

    def curve(self) -> list[Line]:
        """The lines of all kept steps under the conditions of the headline, by step."""
        if self.main is None:
            return []
        found = [
            x
            for x in self.lines
            if self.own(x) and x.conditions == self.main.conditions and x.step is not None
        ]
        return sorted(found, key=lambda x: x.step or 0)


def _is_random(line: Line) -> bool:
    return line.drawn and line.row == "random"


def _same_row(line: Line, main: Line) -> bool:
    return (line.row, line.step, line.counts) == (main.row, main.step, main.counts)


def _alike(other: Line, line: Line) -> bool:
    """Whether two rows may be compared; full data stand beside any number of images."""
    sized = other.row == FULL or other.conditions.ipc == line.conditions.ipc
    return sized and unsized(other) == unsized(line)


def unsized(line: Line) -> Conditions:
    """The conditions of a line without the number of images: what rows of any size share."""
    return line.conditions._replace(ipc=0)


def pooled(sets: Sequence[Shown]) -> list[Line]:
    """The lines of all sets together.

    A baseline counts once, though every set brings it: chosen for students of another augmentation
    it is another set, and under a protocol with its own the same row.
    """
    same = ("row", "step", "draw", "seed", "metric", *Conditions._fields)
    once = {
        (*(getattr(r, n) for n in same), r.set_key if r.step is not None else ""): r
        for shown in sets
        for r in shown.records
    }
    return lines(list(once.values()))


def distillations(sets: Sequence[Shown], company: Sequence[Line]) -> list[Line]:
    """Of all lines those over sets that were distilled alike, as far as headlines quote them."""
    mains = {(s.main.row, s.main.step, s.main.conditions) for s in sets if s.main}
    found = [x for x in company if x.counts == "distillations"]
    return [x for x in found if (x.row, x.step, x.conditions) in mains]


def among(line: Line, company: Sequence[Line]) -> Line:
    """The same line among those of several sets, where another's baselines may stand beside it."""
    of = (line.row, line.step, line.counts, line.set_keys, line.conditions)
    same = (x for x in company if (x.row, x.step, x.counts, x.set_keys, x.conditions) == of)
    return next(same, line)


def gather(folders: Sequence[Path], ledger: Path | None = None) -> list[Shown]:
    """Read and check every folder; `ledger`, where one is given, in place of the folders' own.

    Raises: StillroomError naming the first that is no set, or the damaged file and its line.
    """
    if not folders:
        raise StillroomError("report needs at least one set folder")
    if len(folders) > MAX_SETS:
        raise StillroomError(f"{len(folders)} sets on one page; a page shows at most {MAX_SETS}")
    common = None if ledger is None else read_records(ledger)
    found = [_read(user_path(folder, "set"), common) for folder in folders]
    names = [shown.name for shown in found]
    seen: dict[str, int] = {}
    unique = []
    for shown in found:
        seen[shown.name] = seen.get(shown.name, 0) + 1
        twice = names.count(shown.name) > 1
        name = f"{shown.name} ({seen[shown.name]})" if twice else shown.name
        unique.append(replace(shown, name=name))
    return unique


def _of_set(
    records: Sequence[Record], data: Distilled, keys: frozenset[str]
) -> tuple[list[Record], frozenset[str]]:
    """What a ledger of many sets says of one: its records, those of its kept steps, baselines.

    A kept step that is not in the folder is known by the recipe and seed of the set's own records.
    Baselines are those that were judged as any of these was, and full data.
    Returns the records and the keys of the set and its steps.
    """
    made = {(r.family, r.set_seed) for r in records if r.set_key in keys and r.family}
    keys |= {r.set_key for r in records if (r.family, r.set_seed) in made}
    own = {r.set_key for r in records if r.set_key in keys and r.draw is None}
    judged = {_judged(r) for r in records if r.set_key in own}

    def beside(r: Record) -> bool:
        if (r.step is not None and r.draw is None) or r.data_digest != data.data.get("digest"):
            return False
        sized = r.ipc == data.ipc or r.row == "random-jpeg"
        return r.row == FULL or (sized and _judged(r) in judged)

    return [r for r in records if (r.set_key in own and r.draw is None) or beside(r)], keys


def _judged(r: Record) -> tuple[str, str, str, str]:
    return r.protocol_hash, r.arch, r.numerics, r.taught


def _read(folder: Path, common: Sequence[Record] | None) -> Shown:
    data = load(folder)  # what is no set is said here
    kept = [p for p in folder.glob("steps/*") if re.fullmatch("[0-9]{1,9}", p.name)]
    sets = [p for p in [folder, *kept] if (p / "meta.json").is_file()]
    keys = frozenset(set_digest(path) for path in sets)
    ledger = folder / LEDGER
    records = read_records(ledger) if ledger.exists() and common is None else []
    if common is not None:
        records, keys = _of_set(common, data, keys)
    rows = len({(r.row, r.step, r.arch, r.protocol_hash) for r in records})
    if rows > MAX_ROWS:
        raise StillroomError(f"{ledger}: holds {rows} rows; a page shows at most {MAX_ROWS}")
    valid = [r for r in records if r.step is None or r.draw is not None or r.set_key in keys]
    key = set_digest(folder)
    return Shown(
        name=folder.resolve().name or "set",
        data=data,
        sizes=sizes(folder),
        key=key,
        keys=keys,
        records=tuple(valid),
        stale=len(records) - len(valid),
        metrics=tuple(read_metrics(folder / "metrics.jsonl")),
        run=_run(folder / "run.json"),
        exhibits=read_exhibits(folder / "exhibits", keys, data.classes),
        neighbours=read_neighbours(folder / "exhibits" / "neighbours.safetensors", data),
        maps=read_maps(folder / "exhibits" / "maps.safetensors", data, key),
        reported=find(benchmark, data.ipc) if (benchmark := _benchmark(data)) else (),
    )


def _benchmark(data: Distilled) -> str | None:
    """The benchmark whose reported numbers stand beside a set's: its name alone is no proof."""
    name, (channels, height, width) = data.data.get("name"), data.images.shape[1:]
    if not isinstance(name, str) or height != width:
        return None
    return known(name, len(data.classes), channels, width)


def _run(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise StillroomError(f"{path}: must hold a JSON object")
    return value


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The curve of a run: a step and a loss a line; empty if there is no file.

    Raises: StillroomError naming file and line.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(read_limited(path, MAX_CURVE_BYTES).splitlines(), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise StillroomError(f"{path}:{number}: not a line of JSON; is it cut off?") from None
        if not isinstance(value, dict) or not all(
            is_finite(value.get(k)) for k in ("step", "loss")
        ):
            raise StillroomError(f"{path}:{number}: must hold the numbers 'step' and 'loss'")
        names = ["step", "loss", *(n for n in WATCHED if is_finite(value.get(n)))]
        found.append({name: float(value[name]) for name in names})
    return found
