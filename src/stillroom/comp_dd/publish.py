"""What `comp-dd build` leaves: a list of classes a subset, all numbers, and a page to look at."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch

from stillroom.comp_dd.build import SUBSETS, Built, Side
from stillroom.comp_dd.measure import Complexities
from stillroom.comp_dd.stats import of_built
from stillroom.data.benchmarks import Benchmark
from stillroom.files import fresh_folder, write_atomic
from stillroom.report.subsets import Look, page
from stillroom.runtime import Runtime


def write(
    folder: Path, built: Built, bench: Benchmark, stage: Complexities, examples: int, rt: Runtime
) -> None:
    """Write a build into a new folder, with so many example images of every class on its page."""
    looks = [
        (_look(easy, bench, stage, examples, rt), _look(hard, bench, stage, examples, rt))
        for easy, hard in zip(built.subsets[::2], built.subsets[1::2], strict=True)
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
        stats = of_built(fresh)
        subtitle = f"{len(built.subsets)} subsets, of {len(built.subsets[0].classes)} classes each"
        write_atomic(
            fresh / "index.html",
            page(stats.title, subtitle, stats.pairs, looks if examples else (), stats.notes[0]),
        )


def _look(side: Side, bench: Benchmark, stage: Complexities, examples: int, rt: Runtime) -> Look:
    """The first images that were looked at of every class of a subset."""
    number = {name: c for c, name in enumerate(bench.classes)}
    seen = stage.rows(bench)
    labels = bench.train.labels[seen]
    rows = torch.cat([seen[labels == number[name]][:examples] for name in side.classes])
    maps = list(stage.maps(bench, rows, rt)) if len(rows) else [torch.zeros(0, 1, 1)]
    return Look(
        heading=side.name,
        names=tuple(bench.classes[c] for c in bench.train.labels[rows].tolist()),
        images=bench.train.take(rows).cpu(),
        maps=torch.cat(maps).float().cpu(),
    )
