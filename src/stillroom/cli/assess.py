"""`stillroom assess SET`: quality without training students."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from stillroom.artefacts.schooling import MOST_MODELS, find_schooling
from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.files import user_path
from stillroom.run.options import DataOptions, Machine

if TYPE_CHECKING:
    from stillroom.run.measures import Measured


def _assess(**values: Any) -> None:
    from stillroom.cli.show import key_values, say
    from stillroom.distilled import load
    from stillroom.progress import Shown
    from stillroom.records import LEDGER
    from stillroom.run import fits
    from stillroom.run import machine as machines
    from stillroom.run.assess import assess as run
    from stillroom.run.assess import held_out
    from stillroom.run.measures import held_at_once
    from stillroom.run.prepare import cost_of_originals
    from stillroom.tables import size

    machine = flags.settle(Machine, values, "machine")
    store, shown = machines.store(machine), Shown(values["quiet"])
    folder = user_path(values["source"], "SET")
    made = load(folder)
    options = flags.settle(DataOptions, values, "options")
    if not 1 <= values["model_num"] <= MOST_MODELS:
        raise StillroomError(f"--model-num {values['model_num']} must lie in 1..{MOST_MODELS}")
    flags.refuse_unread_data(values)
    with shown.interruptible(machine.minutes):
        bench = (
            fits.bench_of_set(made, folder, store)
            if values["data"] is None
            else machines.benchmark(values["data"], options, store)
        )
        own = fits.student_of(made)
        pool = [own if name == "auto" else name for name in values["models_pool"] or ["auto"]]
        schooling = find_schooling(values["originals"])
        stages = held_out(made, bench, pool, values["model_num"], schooling, store)
        if values["plan"]:
            cost, rt = cost_of_originals(stages, machine, shown, store)
            archs = ", ".join(dict.fromkeys(stage.name for stage in stages))
            held = f"about {size(held_at_once(made, bench, stages, rt))}"
            pairs = [("networks", archs), ("originals", cost.in_words()), ("memory", held)]
            key_values(f"assessing {folder} (estimates; nothing was run)", pairs)
            return
        found, _ = run(folder, bench, stages, store, machine, shown, folder / LEDGER)
    _show(folder, made.arch, found)
    say(f"records in {folder / LEDGER}; stillroom report shows them")


def _show(folder: Path, own: str, found: Sequence[Measured]) -> None:
    """A table of measures by network; under it what each network's numbers were asked of."""
    from stillroom.cli.show import rows, say
    from stillroom.run.measures import READ_AS
    from stillroom.tables import percent

    archs = list(dict.fromkeys(m.arch for m in found if m.arch != "none")) or ["none"]
    values = {(m.name, m.arch): m for m in found}

    def cell(name: str, arch: str) -> str:
        m = values.get((name, arch)) or values.get((name, "none"))
        if m is None:
            return "-"
        return (
            f"{percent(m.value)} %" if m.unit == "fraction" else f"{m.value:.4g} {m.unit}".strip()
        )

    names = list(dict.fromkeys(m.name for m in found))
    heads = [arch + (" (its own)" if arch == own else "") for arch in archs]
    cells = [[name, *(cell(name, arch) for arch in archs), READ_AS[name]] for name in names]
    rows(f"assessed {folder}", ["measure", *heads, "read it as"], cells)
    for arch in archs:
        asked = [m.asked for m in found if m.arch == arch and m.asked]
        if asked:
            say(f"{arch}: {', '.join(dict.fromkeys(asked))}")


assess = flags.with_signature(
    _assess,
    [
        inspect.Parameter(
            "source",
            inspect.Parameter.POSITIONAL_ONLY,
            annotation=Annotated[Path, Parameter(name="SET", help="a set's folder")],
        ),
        flags.keyword("data", flags.flag(str | None, "real data, if not in the store any more")),
        flags.keyword(
            "models_pool",
            flags.several(str, "networks of the original models [default: the set's]"),
        ),
        flags.keyword("model_num", flags.flag(int, "models of each"), 3),
        flags.keyword(
            "originals",
            flags.flag(str, f"how they are trained: {flags.SCHOOLED}"),
            "default",
        ),
        flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
        flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
        *flags.of_model(DataOptions, "options", "Data"),
        *flags.of_model(Machine, "machine", "Machine"),
    ],
    "Measure a set without training a student on it; adds to SET/records.jsonl.",
)
