"""`stillroom import`: tensors of other programs as a set."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.files import user_path
from stillroom.run.options import DataOptions, Machine


def _import(**values: Any) -> None:
    from stillroom.cli.show import say
    from stillroom.data.augment import parse
    from stillroom.data.named import NAMED
    from stillroom.interchange.tensors import imported
    from stillroom.progress import Shown
    from stillroom.run import machine as machines

    files = [values[name] and user_path(values[name], name) for name in FILES]
    out = user_path(values["out"], "out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StillroomError(f"--out {out} exists and is not empty; name a new folder")
    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    options, store = flags.settle(DataOptions, values, "options"), machines.store(machine)
    with shown.interruptible(machine.minutes):
        bench = machines.benchmark(values["data"], options, store)
        named = NAMED.get(bench.like or "")
        augment = parse(values["augment"] or (named.augment if named else "none")).text
        arch = machines.choose_arch(values["arch"] or "auto", bench)
        made, notes = imported(
            bench,
            *files,
            kind=values["kind"],
            space=values["space"],
            augment=augment,
            arch=arch.name,
            label=values["label"],
        )
    taken = {"--augment": (values["augment"], augment), "--arch": (values["arch"], arch.name)}
    notes += [f"{flag} {own}, the usual" for flag, (told, own) in taken.items() if told is None]
    for note in notes:
        shown.say(note)
    made.save(out)
    rate = "no learned rate" if made.lr is None else f"a learned rate of {made.lr:g}"
    say(f"{len(made)} images of {len(made.classes)} classes, {made.label_kind} labels, {rate}")
    by = "mtt@1" if made.label_kind == "hard" else "datm@1"  # which take the set's rate
    own = "" if made.lr is None else f" --protocol {by}"
    say(f"in {out}; judge it with: stillroom evaluate {out}{own} --baselines")


FILES = ("data_dir", "label_dir", "lr_dir")
import_ = flags.with_signature(
    _import,
    [
        flags.keyword(
            "data",
            flags.flag(str, "the real data, whose network space the images are in"),
            inspect.Parameter.empty,
        ),
        flags.keyword("data_dir", flags.flag(Path, "file of images"), inspect.Parameter.empty),
        flags.keyword("label_dir", flags.flag(Path, "file of labels"), inspect.Parameter.empty),
        flags.keyword("lr_dir", flags.flag(Path | None, "file of a learned rate")),
        flags.keyword("out", flags.flag(Path, "a new folder"), inspect.Parameter.empty),
        flags.keyword(
            "kind",
            flags.flag(
                Literal["auto", "hard", "probs", "logits"],
                "what labels are; auto: classes, probabilities where rows sum to 1, else logits",
            ),
            "auto",
        ),
        flags.keyword(
            "space",
            flags.flag(Literal["network", "pixels"], "what values of images are"),
            "network",
        ),
        flags.keyword(
            "augment", flags.flag(str | None, "what students see [default: usual for the data]")
        ),
        flags.keyword("arch", flags.flag(str | None, "their network [default: by image size]")),
        flags.keyword("label", flags.flag(str, "what tables call it"), "imported"),
        flags.keyword("quiet", flags.flag(bool, "no notes", switch=True), False),
        *flags.of_model(DataOptions, "options", "Data"),
        *flags.of_model(Machine, "machine", "Machine"),
    ],
    "Make a set of images, labels and a learned rate in files of tensors (.pt, .safetensors).",
)
