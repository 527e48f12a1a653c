"""`stillroom challenge`: the ECCV 2024 evaluator, and what goes into it."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.files import refuse_unwritable, user_path
from stillroom.run.options import DataOptions, Machine

if TYPE_CHECKING:
    from torch import Tensor

app = App(
    name="challenge",
    help="The ECCV 2024 challenge, track 1: ten images a class of CIFAR-100 and Tiny-ImageNet.",
)


def _evaluate(**values: Any) -> None:
    from stillroom.challenge import score as scores
    from stillroom.cli.show import key_values, say
    from stillroom.progress import Shown
    from stillroom.run import machine as machines

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    submission = user_path(values["submit_dir"], "submit_dir")
    truth = values["truth_dir"] and user_path(values["truth_dir"], "truth_dir")
    out = user_path(values["output_dir"], "output_dir")
    if not 1 <= values["runs"] <= 1000:
        raise StillroomError(f"--runs {values['runs']} must lie in 1..1000")
    store = machines.store(machine)
    scores.refuse(submission, values["epochs"])
    held = contextlib.nullcontext() if values["plan"] else scores.output(out)
    with shown.interruptible(machine.minutes), tempfile.TemporaryDirectory() as scratch, held:
        asked = scores.prepared(
            submission,
            truth,
            store,
            machine,
            shown,
            epochs=values["epochs"],
            runs=values["runs"],
            mode=values["mode"],
        )
        noticed = [(p.part.name, note) for p in asked.parts for note in p.notes]
        for note in (*asked.notes, *(f"{name}: {note}" for name, note in noticed)):
            shown.say(note)
        costs = scores.plan(asked, Path(scratch))
        if values["plan"]:
            pairs = [(name, cost.in_words()) for name, cost in costs]
            pairs += [(p.part.name, f"zero: {p.reason}") for p in asked.parts if p.images is None]
            pairs += noticed
            pairs += [("not official", asked.unofficial)] if asked.unofficial else []
            key_values(f"{asked.protocol} (estimates; nothing was run)", pairs)
            return
        for name, cost in costs:
            if cost.left:
                shown.say(f"{name}: {cost.in_words()}")
        scored = scores.score(asked, Path(scratch))
        scores.write(asked, scored, out)
    _show(asked, scored, out)
    say(f"in {out / scores.SCORES} and {scores.DETAILS}")


def _show(asked: Any, scored: list[Any], out: Path) -> None:
    from stillroom.challenge.score import total
    from stillroom.cli.show import rows, say
    from stillroom.tables import percent, span

    cells = []
    for one in scored:
        s = one.summary
        if s is None:
            cells.append((one.part.name, "0.0", "-", "-", "; ".join((one.reason, *one.notes))))
            continue
        interval = span(s, " .. ") or "-"
        told = "; ".join(one.notes)
        cells.append((one.part.name, percent(s.mean), interval, str(s.n), told))
    heads = ("part", "accuracy %", "95 % interval", "runs", "what was noticed")
    rows(f"{asked.protocol}, {asked.mode}", heads, cells)
    say(f"correct: {total(scored)}")
    if asked.unofficial:
        say(f"not official: {asked.unofficial}")


def _check(**values: Any) -> None:
    from stillroom.challenge.submission import read_submission
    from stillroom.cli.show import say

    bad = []
    for one in read_submission(user_path(values["submission"], "SUBMISSION")):
        name = one.part.file
        if one.images is None:
            bad.append(name)
            say(f"{name}: would score zero: {one.reason.removeprefix(f'{name}: ')}")
            continue
        x = one.images
        say(f"{name}: {list(x.shape)}, values from {float(x.min()):.3g} to {float(x.max()):.3g}")
        for note in one.notes:
            say(f"  {note}")
    if bad:
        raise StillroomError(
            f"{' and '.join(bad)}: {len(bad)} of 2 parts would score zero; the reasons stand above"
        )


def _of_data(write: Callable[..., Path], values: dict[str, Any]) -> None:
    """Write a file of every data set that is given."""
    from stillroom.challenge.parts import PARTS
    from stillroom.cli.show import say
    from stillroom.progress import Shown
    from stillroom.run import machine as machines

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    out, store = user_path(values["out"], "out"), machines.store(machine)
    refuse_unwritable(out, "--out", folder=True)
    named = {name: values[name] for name in PARTS if values[name] is not None}
    if not named:
        raise StillroomError("name the data: --cifar100 DATA, --tinyimagenet DATA, or both")
    options = flags.settle(DataOptions, values, "options")
    with shown.interruptible(machine.minutes):
        for name, data in named.items():
            part = PARTS[name]
            own = options if options.size else options.model_copy(update={"size": part.size})
            bench = machines.benchmark(data, own, store)
            for note in bench.notes:
                shown.say(f"{data}: {note}")
            out.mkdir(parents=True, exist_ok=True)
            say(f"written: {write(bench, part, out)}")


def _reference(**values: Any) -> None:
    from stillroom.challenge.truth import write_reference

    _of_data(write_reference, values)


def _sample(**values: Any) -> None:
    from stillroom.challenge.truth import write_sample

    seed = values["seed"]
    _of_data(lambda bench, part, out: write_sample(bench, part, out, seed), values)


def _pack(**values: Any) -> None:
    from stillroom.artefacts.carried import load
    from stillroom.challenge.packing import packed
    from stillroom.challenge.parts import PARTS
    from stillroom.challenge.truth import write_parts
    from stillroom.cli.show import say
    from stillroom.run import machine as machines

    machine, out = flags.settle(Machine, values, "machine"), user_path(values["out"], "out")
    refuse_unwritable(out, "--out", folder=True)
    folders = [user_path(folder, "SET") for folder in (values["first"], *values.get("rest", ()))]
    named = {name: values[name] for name in PARTS if values[name] is not None}
    store = machines.store(machine)
    benches = {
        (PARTS[name].classes, PARTS[name].size): machines.benchmark(
            data, DataOptions(size=PARTS[name].size, data_root=values["data_root"]), store
        )
        for name, data in named.items()
    }
    done: dict[str, tuple[Tensor, list[str]]] = {}
    for folder in folders:
        data = load(folder)
        bench = benches.get((len(data.classes), data.images.shape[-1]))
        part, images, notes = packed(data, str(folder), bench)
        if part.name in done:
            raise StillroomError(f"{folder}: a second set for {part.name}; name one of each")
        if (out / part.file).exists():
            raise StillroomError(f"--out {out} holds {part.file} already; name another folder")
        done[part.name] = images, notes
    write_parts({PARTS[name]: images for name, (images, _) in done.items()}, out)
    for name, (_, notes) in done.items():
        say(f"written: {out / PARTS[name].file}")
        for note in notes:
            say(f"  {note}")
    missing = [part.file for part in PARTS.values() if not (out / part.file).exists()]
    if missing:
        say(f"{missing[0]} is not there yet; a submission has both")


def _named(name: str, about: str, default: Any, kind: Any = Path) -> inspect.Parameter:
    """A flag as the organisers spell it, with underscores, or with hyphens."""
    spelt = (f"--{name}", f"--{name.replace('_', '-')}")
    annotation = Annotated[kind, Parameter(name=spelt, help=about, group=flags.PANELS["Run"])]
    return flags.keyword(name, annotation, default)


QUIET = flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False)
MACHINE = flags.of_model(Machine, "machine", "Machine")
app.command(
    flags.with_signature(
        _evaluate,
        [
            _named("submit_dir", "folder or zip of the submission", Path("sample_submission")),
            _named(
                "truth_dir",
                "folder of the test images [default: reference_data]",
                None,
                Path | None,
            ),
            _named("output_dir", "folder that scores.txt is written to", Path()),
            flags.keyword("runs", flags.flag(int, "students of each part; official: 3 or more"), 3),
            flags.keyword("epochs", flags.flag(int | None, "other than 1,000: not official")),
            flags.keyword(
                "mode",
                flags.flag(
                    Literal["fast", "faithful"],
                    "fast: compiled where that repays; faithful: as the organisers' loop, eager",
                ),
                "fast",
            ),
            flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
            QUIET,
            *MACHINE,
        ],
        "Score a submission: scores.txt as the organisers' evaluator writes it.",
    ),
    name="evaluate",
)
_submission = inspect.Parameter(
    "submission",
    inspect.Parameter.POSITIONAL_ONLY,
    annotation=Annotated[Path, Parameter(name="SUBMISSION", help="a folder or zip")],
)
app.command(
    flags.with_signature(_check, [_submission], "Say what an evaluator would make of it."),
    name="check",
)
DATA = [
    flags.keyword("cifar100", flags.flag(str | None, "CIFAR-100, or data of its shape")),
    flags.keyword("tinyimagenet", flags.flag(str | None, "Tiny-ImageNet, or data of its shape")),
    flags.keyword("out", flags.flag(Path, "a folder"), inspect.Parameter.empty),
]
# Pixels go into the challenge's own space, whatever the data would be normalised by.
_NOT_HERE = ("classes", "normalise", "zca", "val")
_OPTIONS = flags.of_model(DataOptions, "options", "Data", skip=_NOT_HERE)
_OF_DATA = [*DATA, QUIET, *_OPTIONS, *MACHINE]
app.command(
    flags.with_signature(
        _reference, _OF_DATA, "Write test images of data as an evaluator's truth_dir holds them."
    ),
    name="reference",
)
app.command(
    flags.with_signature(
        _sample,
        [*_OF_DATA, flags.keyword("seed", flags.flag(int, "of the draw"), 0)],
        "Write ten real images a class, drawn at random: the organisers' sample.",
    ),
    name="sample",
)
app.command(
    flags.with_signature(
        _pack,
        [
            inspect.Parameter(
                "first",
                inspect.Parameter.POSITIONAL_ONLY,
                annotation=Annotated[Path, Parameter(name="SET", help="a set's folder")],
            ),
            inspect.Parameter(
                "rest",
                inspect.Parameter.VAR_POSITIONAL,
                annotation=Annotated[Path, Parameter(help="the other part's")],
            ),
            *DATA,
            flags.keyword(
                "data_root", flags.flag(Path | None, "folder that holds named benchmarks")
            ),
            *MACHINE,
        ],
        "Write sets as a submission; data given beside them tell the order of classes by name.",
    ),
    name="pack",
)
