"""`stillroom comp-dd`: the Comp-DD benchmark."""

from __future__ import annotations

import csv
import inspect
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.files import refuse_unwritable, user_path, write_atomic
from stillroom.run.options import DataOptions, Machine

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.artefacts.store import Store
    from stillroom.comp_dd.look import Looking
    from stillroom.data.benchmarks import Benchmark

NETWORK = "resnet18"  # as in the paper; without a mean over the last map, maps are often empty
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
    from stillroom.cli.show import rows
    from stillroom.comp_dd.complexity import hard_first, of_classes
    from stillroom.comp_dd.look import look
    from stillroom.progress import Shown

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    out, images = (values[n] and user_path(values[n], n) for n in ("out", "images"))
    for name, path in (("--out", out), ("--images", images)):
        if path:
            refuse_unwritable(path, name, folder=False)
    if out and images and out.resolve() == images.resolve():
        raise StillroomError(f"--out and --images are both {out}; name two files")
    with shown.interruptible(machine.minutes):
        archs, layers = values["arch"] or [NETWORK], values["layer"] or ["auto"]
        asked = _asked(values, archs, layers, num=values["num"])
        bench, store = _opened(values, machine)
        seen = look(asked, bench, store, machine, shown)
    found, labels = seen.by_network, bench.train.labels[seen.rows].cpu()
    means = {name: of_classes(v, labels, len(bench.classes)) for name, v in found.items()}
    order = hard_first(next(iter(means.values())))
    counts = labels.bincount(minlength=len(bench.classes)).tolist()
    table = [
        (bench.classes[c], *(f"{100 * float(m[c]):.1f}" for m in means.values()), str(counts[c]))
        for c in order
    ]
    heads = [f"by {name}, %" for name in means] if len(means) > 1 else ["complexity %"]
    rows(f"{bench.name}, hard first", ("class", *heads, "images"), table)
    _show_agreement(found, labels, len(bench.classes))
    if out:
        lines = [
            [bench.classes[c], *(f"{float(m[c]):.9g}" for m in means.values()), counts[c]]
            for c in order
        ]
        names = [f"complexity by {name}" for name in means] if len(means) > 1 else ["complexity"]
        _write_csv(out, ["class", *names, "images"], lines)
    if images:
        columns = [seen.rows.tolist(), labels.tolist(), *(v.tolist() for v in found.values())]
        lines = [
            [row, bench.classes[c], *(f"{v:.9g}" for v in more)]
            for row, c, *more in zip(*columns, strict=True)
        ]
        _write_csv(images, ["training image", "class", *(f"by {n}" for n in found)], lines)


def _show_agreement(found: dict[str, Tensor], labels: Tensor, classes: int) -> None:
    from stillroom.cli.show import rows
    from stillroom.comp_dd.agreement import agreements

    cells = []
    for one in agreements(found, labels, classes):
        known = f"{one.low:.2f} to {one.high:.2f}" if (one.low, one.high) != (-1, 1) else "-"
        cells.append((one.first, one.second, f"{one.rho:.2f}", known))
    if cells:
        heads = ("by", "and by", "rho", "95 % interval")
        rows("how alike the classes are ranked (Spearman)", heads, cells)


def _asked(values: dict[str, Any], archs: list[str], layers: list[str], **more: Any) -> Looking:
    from stillroom.comp_dd.look import settled

    how = {name: values[name] for name in ("cam", "of", "threshold", "each")}
    return settled(archs, layers, how, originals=values["originals"], **more)


def _opened(values: dict[str, Any], machine: Machine) -> tuple[Benchmark, Store]:
    """The data that are looked at, and where networks lie."""
    from stillroom.run import machine as machines

    options, store = flags.settle(DataOptions, values, "options"), machines.store(machine)
    return machines.benchmark(values["data"], options, store), store


def _write_csv(path: Path, head: list[str], lines: list[list[Any]]) -> None:
    from stillroom.cli.show import say

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    write_atomic(path, table.getvalue())
    say(f"written: {path}")


def _build(**values: Any) -> None:
    from stillroom.cli.show import rows, say
    from stillroom.comp_dd import build as building
    from stillroom.comp_dd.categories import read_categories
    from stillroom.comp_dd.look import look
    from stillroom.comp_dd.publish import Measured, write
    from stillroom.progress import Shown
    from stillroom.tables import percent

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    out, size = user_path(values["out"], "out"), values["classes_each"]
    refuse_unwritable(out, "--out", folder=True)
    if out.exists() and any(out.iterdir()):
        raise StillroomError(f"--out {out} exists and is not empty; name a new folder")
    if size < 2:
        raise StillroomError(f"--classes-each {size}: a subset needs two classes at least")
    if values["each"] < 4 or values["examples"] < 0:
        raise StillroomError(
            "--each must be at least 4, two for either half; --examples at least 0"
        )
    with shown.interruptible(machine.minutes):
        asked = _asked(values, [values["arch"]], [values["layer"]])
        bench, store = _opened(values, machine)
        categories = read_categories(values["categories"], bench.classes)
        if others := categories.others:
            shown.say(f"{values['categories']}: {others} of its classes are not in {bench.name}")
        building.large_enough(categories.classes, size)
        building.refuse_broken_names(bench.classes)
        seen = look(asked, bench, store, machine, shown)
        (stage,), (found,) = seen.stages, seen.by_network.values()
        built = building.built(bench, stage, seen.rows, found, categories, size)
        for name in sorted(categories.classes.keys() - {s.category for s in built.subsets}):
            few = len(categories.classes[name])
            shown.say(f"{name}: {few} classes are too few for two subsets")
        measured = Measured(stage, seen.rows, found)
        write(out, built, bench, measured, values["examples"], seen.rt)
    table = []
    for easy, hard in built.pairs():
        apart, half = building.gap(easy, hard)
        cells = [percent(s.chosen_on) for s in (easy, hard)]
        cells += [percent(s.held_out) for s in (easy, hard)]
        table.append((easy.category, *cells, f"{100 * apart:+.1f} ± {100 * half:.1f}"))
    heads = ("category", "easy", "hard", "easy, other half", "hard, other half", "difference there")
    rows(f"{bench.name}: complexity in %, of {size} classes a side", heads, table)
    say(f"in {out}: a file of classes a subset, for --classes; {building.SUBSETS}; index.html")


def _stats(**values: Any) -> None:
    from stillroom.cli.show import rows, say
    from stillroom.comp_dd import stats

    built = values["built"]
    if built is not None and (values["complexity"] or values["data_root"]):
        raise StillroomError("--complexity and --data-root are of Comp-DD; a build has its own")
    if built is not None:
        found = stats.of_built(user_path(built, "BUILD"))
    else:
        if values["data_root"] is None:
            raise StillroomError("name a BUILD, or with --data-root the folder that holds ImageNet")
        table = values["complexity"] and user_path(values["complexity"], "complexity")
        found = stats.of_comp_dd(values["data_root"], table or None)
    cells = []
    for p in found.pairs:
        cells.append((p.category, *(f"{n:,}" for n in p.images), *stats.told(p)))
    both = [f"{what}, {side}" for what in ("images", "complexity %") for side in ("easy", "hard")]
    heads = ("category", *both, "hard minus easy")
    rows(found.title, heads, cells)
    for note in found.notes:
        say(note)
    if values["out"] is not None:
        out = user_path(values["out"], "out")
        write_atomic(out, found.page())
        say(f"page: {out}")


def _evaluate(**values: Any) -> None:
    from stillroom.cli.show import accuracy_table, say
    from stillroom.comp_dd.evaluate import Files, judge
    from stillroom.progress import Shown

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    files = ("data_path", "data_dir", "label_dir", "lr_dir", "out")
    paths: dict[str, Any] = {n: values[n] and user_path(values[n], n) for n in files}
    fields = ("category", "subset", "model", "lr_net", "epochs", "batch_size", "seeds")
    dsa = values["dsa"].lower() == "true"
    given = {name: values[name] for name in (*fields, "size", "strict_reference")}
    asked = Files(**paths, **given, dsa=dsa)
    with shown.interruptible(machine.minutes):
        judged = judge(asked, machine, shown)
    accuracy_table(judged.lines, judged.title)
    if asked.out:
        say(f"in {judged.folder}")


_DEEPEST = "auto: the deepest map of 4 x 4 or more"
_MEASURE = [
    flags.keyword("originals", flags.flag(str, f"how trained: {flags.SCHOOLED}"), "default"),
    flags.keyword(
        "cam", flags.flag(Literal["grad-cam", "smooth-grad-cam++"], "kind of map"), "grad-cam"
    ),
    flags.keyword(
        "of",
        flags.flag(
            Literal["label", "predicted"],
            "the class that a map explains: the image's, or, as in the published script, the one "
            "that is predicted",
        ),
        "label",
    ),
    flags.keyword("threshold", flags.flag(float, "from where on a pixel is active"), 0.5),
    flags.keyword("each", flags.flag(int, "training images of a class, drawn by key"), 200),
]
_DATA = flags.keyword("data", flags.flag(str, "any labelled data"), inspect.Parameter.empty)
_REST = [
    flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
    *flags.of_model(DataOptions, "options", "Data"),
    *flags.of_model(Machine, "machine", "Machine"),
]
app.command(
    flags.with_signature(
        _complexity,
        [
            _DATA,
            flags.keyword(
                "arch",
                flags.several(
                    str,
                    f"networks that look; of several, how their ranks agree [default: {NETWORK}]",
                ),
            ),
            flags.keyword("num", flags.flag(int, "models of each network"), 1),
            flags.keyword(
                "layer",
                flags.several(str, f"in which layer, or in which of each; {_DEEPEST}"),
            ),
            *_MEASURE,
            flags.keyword("out", flags.flag(Path | None, "a CSV file of the classes")),
            flags.keyword("images", flags.flag(Path | None, "a CSV file of the single images")),
            *_REST,
        ],
        "Measure how complex the classes of data are: where a network does not look.",
    ),
    name="complexity",
)
app.command(
    flags.with_signature(
        _build,
        [
            _DATA,
            flags.keyword(
                "categories",
                flags.flag(str, "a CSV file class,category[,name]; or a table here: tiny-imagenet"),
                inspect.Parameter.empty,
            ),
            flags.keyword("classes_each", flags.flag(int, "classes of every subset"), 10),
            flags.keyword("out", flags.flag(Path, "a new folder"), inspect.Parameter.empty),
            flags.keyword("examples", flags.flag(int, "images of a class on its page"), 2),
            flags.keyword("arch", flags.flag(str, "the network that looks"), NETWORK),
            flags.keyword("layer", flags.flag(str, f"in which layer; {_DEEPEST}"), "auto"),
            *_MEASURE,
            *_REST,
        ],
        "Make easy and hard subsets: of every category the least and the most complex classes.",
    ),
    name="build",
)
app.command(
    flags.with_signature(
        _stats,
        [
            inspect.Parameter(
                "built",
                inspect.Parameter.POSITIONAL_ONLY,
                annotation=Annotated[
                    Path | None, Parameter(name="BUILD", help="a folder of build; else Comp-DD's")
                ],
                default=None,
            ),
            flags.keyword("data_root", flags.flag(Path | None, "folder that holds an ImageNet")),
            flags.keyword(
                "complexity",
                flags.flag(
                    Path | None, "a CSV file of comp-dd complexity, in place of the paper's numbers"
                ),
            ),
            flags.keyword("out", flags.flag(Path | None, "a page with the two diagrams, .html")),
        ],
        "Count the images of the subsets, and say how complex they are.",
    ),
    name="stats",
)


def _theirs(name: str, kind: Any, about: str, default: Any = None, *more: str) -> inspect.Parameter:
    """A flag as the benchmark's page spells it, with underscores, or with hyphens."""
    spelt = tuple(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}", *more)))
    told = Parameter(name=spelt, help=about, group=flags.PANELS["Run"])
    return flags.keyword(name, Annotated[kind, told], default)


_NEEDED = inspect.Parameter.empty
app.command(
    flags.with_signature(
        _evaluate,
        [
            _theirs("data_path", Path, "an ImageNet: train/<wnid> and val/<wnid>", _NEEDED),
            _theirs("data_dir", Path, "file of images", _NEEDED),
            _theirs("label_dir", Path, "file of labels: classes, or logits", _NEEDED),
            _theirs("lr_dir", Path | None, "file of a learned rate"),
            _theirs("category", str, "bird, dog, car, fish, insect, snake, round, music", _NEEDED),
            _theirs("subset", str, "easy or hard", _NEEDED),
            _theirs("model", str, "the student", "ConvNetD5"),
            _theirs(
                "lr_net", float | None, "its rate, before that of --lr_dir [default: that, or 0.01]"
            ),
            _theirs(
                "dsa",
                Literal["True", "False", "true", "false"],
                "Siamese augmentation of students",
                "True",
            ),
            _theirs("size", int, "side of the images, also --res", 128, "--res"),
            _theirs("epochs", int | None, "of a student [default: 1000]"),
            _theirs("batch_size", int | None, "images a step [default: 128]"),
            flags.keyword("seeds", flags.flag(int | None, "students [default: the protocol's]")),
            flags.keyword(
                "strict_reference",
                flags.flag(
                    bool, "labels of the published list: of music, hard ten, not nine", switch=True
                ),
                False,
            ),
            flags.keyword("out", flags.flag(Path | None, "a new folder for the set and records")),
            flags.keyword("quiet", flags.flag(bool, "no progress", switch=True), False),
            *flags.of_model(Machine, "machine", "Machine"),
        ],
        "Judge images, labels and a rate on a subset of Comp-DD, as its page has it.",
    ),
    name="evaluate",
)
