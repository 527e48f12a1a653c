"""`stillroom comp-dd`: the Comp-DD benchmark."""

from __future__ import annotations

import csv
import inspect
import io
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from stillroom.artefacts.schooling import find_schooling
from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.files import user_path, write_atomic
from stillroom.run.options import DataOptions, Machine

app = App(name="comp-dd", help="Comp-DD: easy and hard subsets of ImageNet, and their complexity.")


@app.command(name="list")
def _list() -> None:
    """List the sixteen subsets and their classes."""
    from stillroom.cli.show import rows
    from stillroom.data.imagenet import SUBSETS, wnids

    cells = [
        (name, str(len(SUBSETS[name])), " ".join(wnids(name)))
        for name in SUBSETS
        if name.startswith("comp-dd/")
    ]
    rows("Comp-DD, names of --data", ("name", "classes", "in the order of labels"), cells)


def _complexity(**values: Any) -> None:
    from stillroom.artefacts.store import obtain
    from stillroom.cli.show import rows, say
    from stillroom.comp_dd.complexity import hard_first, of_classes
    from stillroom.comp_dd.measure import Complexities
    from stillroom.progress import Shown
    from stillroom.run import machine as machines
    from stillroom.run.prepare import cost_of_originals, originals

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    options, store = flags.settle(DataOptions, values, "options"), machines.store(machine)
    out = None if values["out"] is None else user_path(values["out"], "out")
    if not 0 < values["threshold"] <= 1 or values["each"] < 1:
        raise StillroomError("--threshold must lie above 0 and up to 1, --each must be at least 1")
    with shown.interruptible(machine.minutes):
        bench = machines.benchmark(values["data"], options, store)
        schooling = find_schooling(values["originals"])
        (model,) = originals(bench, [values["arch"]], 1, schooling, store)
        cost, rt = cost_of_originals([model], machine, shown, store)
        if cost.left:
            shown.say(cost.in_words())
        given = {name: values[name] for name in ("layer", "cam", "of", "threshold", "each")}
        stage = Complexities(model, **given)
        seen, found = obtain(store, stage, machines.executor(machine), rt)
    labels = bench.train.labels[seen].cpu()
    means = of_classes(found, labels, len(bench.classes))
    order = hard_first(means)
    counts = labels.bincount(minlength=len(bench.classes)).tolist()
    cells = [(bench.classes[c], f"{100 * float(means[c]):.1f}", str(counts[c])) for c in order]
    rows(f"{bench.name}, hard first", ("class", "complexity %", "images"), cells)
    if out is not None:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["class", "complexity", "images"])
        writer.writerows((bench.classes[c], f"{float(means[c]):.9g}", counts[c]) for c in order)
        write_atomic(out, table.getvalue())
        say(f"written: {out}")


app.command(
    flags.with_signature(
        _complexity,
        [
            flags.keyword(
                "data", flags.flag(str, "any labelled data, as elsewhere"), inspect.Parameter.empty
            ),
            flags.keyword("arch", flags.flag(str, "the network that looks"), "auto"),
            flags.keyword(
                "originals", flags.flag(str, f"how it is trained: {flags.SCHOOLED}"), "default"
            ),
            flags.keyword(
                "layer", flags.flag(str, "in which layer; auto: the deepest map"), "auto"
            ),
            flags.keyword(
                "cam",
                flags.flag(Literal["grad-cam", "smooth-grad-cam++"], "kind of map"),
                "grad-cam",
            ),
            flags.keyword(
                "of",
                flags.flag(
                    Literal["label", "predicted"],
                    "the class that a map explains: the image's, or, as in the published script, "
                    "the one that is predicted",
                ),
                "label",
            ),
            flags.keyword("threshold", flags.flag(float, "from where on a pixel is active"), 0.5),
            flags.keyword("each", flags.flag(int, "training images of a class, drawn by key"), 200),
            flags.keyword("out", flags.flag(Path | None, "a CSV file of the classes")),
            flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
            *flags.of_model(DataOptions, "options", "Data"),
            *flags.of_model(Machine, "machine", "Machine"),
        ],
        "Measure how complex the classes of data are: where a network does not look.",
    ),
    name="complexity",
)
