"""`stillroom prepare relabels SET`: labels of trained networks, stored in the folder of a set."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from stillroom.cli import flags
from stillroom.files import user_path
from stillroom.run.options import DataOptions, Machine


def _relabels(**values: Any) -> None:
    from stillroom.cli.show import key_values, labels_of_teachers, say
    from stillroom.evaluation.published import find_protocol
    from stillroom.progress import Shown
    from stillroom.recipe import settled
    from stillroom.run import machine as machines
    from stillroom.run import relabel as relabels
    from stillroom.run.fits import bench_of
    from stillroom.tables import read_size

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    store, folder = machines.store(machine), user_path(values["source"], "SET")
    fields = {name: values[name] for name in ("epochs", "codec", "seed", "force")}
    budget = values["budget"]
    asked = settled(
        relabels.Relabelling,
        {
            **fields,
            "protocol": find_protocol(values["protocol"]),
            "budget": None if budget is None else read_size(budget),
            "teachers": {
                "archs": tuple(values["teachers"] or ()),
                "num": values["teacher_num"],
                "schooling": values["schooling"],
            },
        },
        "prepare relabels",
    )
    out = None if values["out"] is None else user_path(values["out"], "out")
    flags.refuse_unread_data(values)
    options = flags.settle(DataOptions, values, "options")
    with shown.interruptible(machine.minutes):
        bench = bench_of(folder, values["data"], options, store)
        planned = relabels.plan(folder, bench, asked, machine, shown, store, out)
        if values["plan"]:
            title = f"labels of {folder} for {asked.protocol.id} (estimates; nothing was run)"
            key_values(title, planned.pairs())
            return
        if planned.teachers.left:
            shown.say(planned.teachers.in_words())
        if planned.said:
            shown.say(f"{planned.header.codec}: {planned.said}")
        found = relabels.relabel(planned, machine)
    key_values(str(planned.target), labels_of_teachers(found))
    say(f"labels in {found.folder}")


relabels = flags.with_signature(
    _relabels,
    [
        inspect.Parameter(
            "source",
            inspect.Parameter.POSITIONAL_ONLY,
            annotation=Annotated[Path, Parameter(name="SET", help="a set's folder")],
        ),
        flags.keyword(
            "teachers",
            flags.several(
                str, "networks that label [default: those of its labels, or that made the set]"
            ),
        ),
        flags.keyword("teacher_num", flags.flag(int | None, "models of each [default: 1]")),
        flags.keyword("schooling", flags.flag(str | None, f"how trained: {flags.SCHOOLED}")),
        flags.keyword(
            "protocol", flags.flag(str, "whose views, batches and epochs they are"), "edc@1"
        ),
        flags.keyword("epochs", flags.flag(int | None, "epochs [default: the protocol's]")),
        flags.keyword(
            "codec",
            flags.flag(str | None, "fp16, int8 or topk:K [default: fp16, or by the budget]"),
        ),
        flags.keyword(
            "budget",
            flags.flag(
                str | None,
                "bytes of labels, such as 30MB: fp16 if all epochs fit, else int8 and fewer of "
                "them, which students use again",
            ),
        ),
        flags.keyword("seed", flags.flag(int, "of the drawn views"), 42),
        flags.keyword(
            "out", flags.flag(Path | None, "a new folder for set and labels [default: SET]")
        ),
        flags.keyword("force", flags.flag(bool, "overwrite other labels", switch=True), False),
        flags.keyword("data", flags.flag(str | None, "real data, if not in the store any more")),
        flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
        flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
        *flags.of_model(DataOptions, "options", "Data"),
        *flags.of_model(Machine, "machine", "Machine"),
    ],
    "Store what teachers say of drawn views of a set, in its folder, for students to learn.",
)
