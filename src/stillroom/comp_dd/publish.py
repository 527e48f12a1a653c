"""What `comp-dd build` leaves: a list of classes a subset, all numbers, and a page to look at."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stillroom.comp_dd.build import SUBSETS, Built, Side
from stillroom.comp_dd.measure import Complexities
from stillroom.comp_dd.stats import of_built
from stillroom.data.benchmarks import Benchmark
from stillroom.files import fresh_folder, write_atomic
from stillroom.report.subsets import Look
from stillroom.runtime import Runtime


@dataclass(frozen=True)
class Measured:
    """What was looked at: training images int64 [M], and the complexity [M] of each."""

    stage: Complexities
    rows: Tensor
    complexity: Tensor


def write(
    folder: Path, built: Built, bench: Benchmark, seen: Measured, examples: int, rt: Runtime
) -> None:
    """Write a build into a new folder, with so many example images of every class on its page."""
    given = (built.names, bench, seen, examples, rt)
    looks = [
        (_look(easy, *given), _look(hard, *given))
        for easy, hard in (built.pairs() if examples else ())
    ]
    with fresh_folder(folder) as fresh:
        for subset in built.subsets:
            write_atomic(fresh / f"{subset.name}.txt", "\n".join(subset.classes) + "\n")
        write_atomic(fresh / SUBSETS, built.model_dump_json(indent=1) + "\n")
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["class", "complexity"])
        hard_first = sorted(built.complexity.items(), key=lambda pair: -pair[1])
        writer.writerows((name, f"{value:.9g}") for name, value in hard_first)
        write_atomic(fresh / "complexity.csv", table.getvalue())
        subtitle = f"{len(built.subsets)} subsets, of {len(built.subsets[0].classes)} classes each"
        write_atomic(fresh / "index.html", of_built(fresh).page(subtitle, looks))


def _look(
    side: Side,
    names: Mapping[str, str],
    bench: Benchmark,
    seen: Measured,
    examples: int,
    rt: Runtime,
) -> Look:
    """The first images that were looked at of every class of a subset."""
    number = {name: c for c, name in enumerate(bench.classes)}
    labels = bench.train.labels[seen.rows]
    places = torch.cat([(labels == number[n]).nonzero()[:examples, 0] for n in side.classes])
    return Look(
        heading=side.name,
        names=tuple(names.get(n, n) for n in (bench.classes[c] for c in labels[places].tolist())),
        images=bench.train.take(seen.rows[places]).cpu(),
        maps=seen.stage.maps_of(bench, places, rt),
        complexity=seen.complexity[places],
    )
