"""`stillroom prepare STAGE ...`: what methods need, made alone."""

from __future__ import annotations

import inspect
from typing import Any

from cyclopts import App
from pydantic import ValidationError

from stillroom.artefacts.schooling import Schooling, find_schooling
from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.run.options import DataOptions, Machine

app = App(name="prepare", help="Make what methods need, alone: original models.")


def _originals(**values: Any) -> None:
    from stillroom.cli.show import key_values, say
    from stillroom.progress import Shown
    from stillroom.run import machine as machines
    from stillroom.run.prepare import cost_of_originals, obtain_originals, originals
    from stillroom.tables import percent

    if not 1 <= values["num"] <= 1000:
        raise StillroomError(f"--num {values['num']} must lie in 1..1000")
    machine = flags.settle(Machine, values, "machine")
    schooling = _schooling(values)
    store, shown = machines.store(machine), Shown(values["quiet"])
    with shown.interruptible(machine.minutes):
        options = flags.settle(DataOptions, values, "options")
        bench = machines.benchmark(values["data"], options, store)
        stages = originals(bench, values["arch"] or ["auto"], values["num"], schooling, store)
        cost, rt = cost_of_originals(stages, bench, machine, shown, store)
        if values["plan"]:
            pairs = [("schooling", str(schooling.model_dump())), ("models", cost.in_words())]
            key_values(f"originals of {bench.name} (estimates; nothing was run)", pairs)
            return
        if cost.left:
            shown.say(cost.in_words())
        found = obtain_originals(stages, machine, store, rt)
    for arch, models in found.items():
        told = ", ".join(percent(m.accuracy) for m in models[:10])
        more = f" and {len(models) - 10} more" if len(models) > 10 else ""
        seconds = sum(m.seconds for m in models) / len(models)
        say(f"{arch}: {len(models)} models, test accuracy {told}{more} %, {seconds:.0f} s each")


def _schooling(values: dict[str, Any]) -> Schooling:
    base = find_schooling(values["recipe"]).model_dump()
    try:
        return Schooling(**{**base, **flags.chosen(values, "schooling")})
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + ".".join(map(str, first["loc"])).replace("_", "-")
        raise StillroomError(f"{name}={first['input']!r}: {first['msg']}") from None


app.command(
    flags.with_signature(
        _originals,
        [
            flags.keyword(
                "data",
                flags.flag(str, "digits, a named benchmark, hf:owner/name, or a folder"),
                inspect.Parameter.empty,
            ),
            flags.keyword("arch", flags.several(str, "networks [default: by image size]")),
            flags.keyword("num", flags.flag(int, "models of each network"), 1),
            flags.keyword(
                "recipe",
                flags.flag(str, f"what the flags below change: {flags.SCHOOLED}"),
                "default",
            ),
            flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
            flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
            *flags.of_model(Schooling, "schooling", "Method"),
            *flags.of_model(DataOptions, "options", "Data"),
            *flags.of_model(Machine, "machine", "Machine"),
        ],
        "Train networks on the original data, for CLOM and for assessing sets; cached by key.",
    ),
    name="originals",
)
