"""Housekeeping verbs: inspect, export, cite, recipes, store."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from stillroom.errors import StillroomError
from stillroom.files import user_path

if TYPE_CHECKING:
    from stillroom.artefacts.store import Store

recipes = App(name="recipes", help="Recipes inside the package.")
store = App(name="store", help="The folder of cached and unfinished work.")
StoreFlag = Annotated[Path | None, Parameter(help="default STILLROOM_STORE or the user cache")]


def inspect(folder: Annotated[Path, Parameter(name="SET", help="a set's folder")], /) -> None:
    """Show what a set is: images, labels, classes, preprocessing, recipe, bytes."""
    from stillroom.artefacts.carried import load, sizes
    from stillroom.cli.show import key_values, labels_of_teachers
    from stillroom.files import canonical
    from stillroom.tables import size

    folder = user_path(folder, "SET")
    data, held = load(folder), sizes(folder)
    if data.relabels is not None:
        data.relabels.verify()  # as `load` did with the rest; a flipped bit shows nowhere else
    pixels = data.pixels()
    told = data.provenance
    soft = [f"{size(held.labels)} of soft labels"] if held.labels else []
    counts = data.data.get("counts")
    numbers = [f"{n} {k}" for k, n in counts.items()] if isinstance(counts, dict) else []
    made = [str(told[k]) for k in ("label",) if k in told]
    made += [f"{k} {told[k]}" for k in ("step", "key") if k in told]
    shape = " x ".join(map(str, data.images.shape))
    names = ", ".join(data.classes[:12]) + (" ..." if len(data.classes) > 12 else "")
    pre = data.preprocess
    key_values(
        str(folder),
        [
            ("images", f"{shape}, stored as {data.storage}"),
            ("labels", data.label_kind),
            ("images per class", str(data.ipc)),
            ("classes", f"{len(data.classes)}: {names}"),
            (
                "network space",
                f"{pre.name}: mean {_short(pre.mean)}, std {_short(pre.std)}"
                f"{', ZCA' if pre.zca else ''}",
            ),
            (
                "values",
                f"{float(data.images.min()):.3f} .. {float(data.images.max()):.3f} in "
                f"network space, mean pixel {float(pixels.mean()):.3f}",
            ),
            ("augmentation", data.augment),
            ("network", data.arch),
            ("learned rate", "none" if data.lr is None else f"{data.lr:g}"),
            ("real data", ", ".join([str(data.data.get("name", "not said"))[:80], *numbers])),
            ("made by", ", ".join(made)[:200] or "not said"),
            ("recipe", canonical(told.get("recipe", {}))),
            *labels_of_teachers(data.relabels),
            ("on disk", " + ".join([size(held.images), *soft])),
        ],
    )


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def export(
    folder: Annotated[Path, Parameter(name="SET", help="a set's folder")],
    /,
    *,
    to: Annotated[
        Literal["folder", "classes", "tensors", "hf"],
        Parameter(
            help="folder: PNGs and labels.csv; classes: PNGs in a folder a class; tensors: "
            "images.pt, labels.pt; hf: parquet"
        ),
    ],
    out: Annotated[Path, Parameter(help="a new folder")],
) -> None:
    """Write a set in another form."""
    from stillroom.artefacts.carried import load
    from stillroom.cli.show import say
    from stillroom.files import fresh_folder
    from stillroom.run import publish

    data, out = load(user_path(folder, "SET")), user_path(out, "out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StillroomError(f"--out {out} exists and is not empty; name a new folder")
    write = {
        "folder": publish.export_folder,
        "classes": publish.export_classes,
        "tensors": publish.export_tensors,
        "hf": publish.export_hf,
    }[to]
    with fresh_folder(out) as fresh:
        write(data, fresh)
        labels = publish.export_labels(data, to, fresh)
    say(f"{len(data)} images in {out}")
    if labels:
        say(labels)


def cite(folder: Annotated[Path, Parameter(name="SET", help="a set's folder")], /) -> None:
    """Print the BibTeX of what made a set."""
    from stillroom.cite import bibtex
    from stillroom.cli.show import say
    from stillroom.distilled import load

    say(bibtex(load(folder).provenance.get("papers", [])))


@recipes.command(name="list")
def recipes_list() -> None:
    """List them."""
    from stillroom.cli.show import say
    from stillroom.recipe import packaged

    for row in packaged():
        say(row.name)


@recipes.command(name="show")
def recipes_show(name: Annotated[str, Parameter(name="NAME")], /) -> None:
    """Print one."""
    from stillroom.cli.show import say
    from stillroom.errors import suggest
    from stillroom.recipe import packaged

    found = {row.name: row.path for row in packaged()}
    if name not in found:
        raise StillroomError(f"recipe {name!r} is unknown{suggest(name, found)}; see recipes list")
    say(found[name].read_text(encoding="utf-8").rstrip())


@recipes.command(name="convert")
def recipes_convert(
    of: Annotated[Literal["edf", "datm", "pad"], Parameter(name="KIND", help="whose it is")],
    file: Annotated[Path, Parameter(name="FILE", help="the YAML file")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="the recipe's file [default: print it]")] = None,
) -> None:
    """Turn a configuration of another program into a recipe."""
    from stillroom.cli.show import say
    from stillroom.files import write_atomic
    from stillroom.interchange.edf_config import convert
    from stillroom.progress import Shown
    from stillroom.recipe import as_yaml, read_yaml

    path = user_path(file, "FILE")
    value, notes = convert(read_yaml(path), path.name, of)
    told = out is not None
    for note in notes:
        Shown(quiet=not told).say(note)
    text = as_yaml(value, [f"converted from {path.name}", *notes])
    if out is None:
        say(text.rstrip())
        return
    written = user_path(out, "out")
    if written.exists():
        raise StillroomError(f"--out {written} exists already; name a new file")
    write_atomic(written, text)
    say(f"written: {written}; run it with: stillroom distill {shlex.quote(str(written))}")


@store.command(name="list")
def store_list(*, store: StoreFlag = None) -> None:
    """List what is in it."""
    from stillroom.cli.show import say
    from stillroom.tables import size

    opened, total = _open(store), 0
    for entry in opened.entries():
        line = f"{entry.name:<32} {entry.state:<10} {size(entry.bytes):>9}  {entry.about}"
        say(line.rstrip())
        total += entry.bytes
    say(f"{size(total)} in {opened.root}")


@store.command(name="verify")
def store_verify(*, store: StoreFlag = None) -> None:
    """Read every byte and name what is damaged."""
    from stillroom.cli.show import say

    problems = list(_open(store).verify())
    if problems:
        name, problem = problems[0]
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise StillroomError(f"{name}: {problem}{more}; remove it with: stillroom store gc")
    say("nothing is damaged")


@store.command(name="gc")
def store_gc(
    *,
    store: StoreFlag = None,
    everything: Annotated[bool, Parameter(negative="", help="remove whole artefacts too")] = False,
) -> None:
    """Remove what is unfinished or damaged."""
    from stillroom.cli.show import say
    from stillroom.tables import size

    gone = list(_open(store).gc(everything=everything))
    for entry in gone:
        say(f"removed {entry.name} ({entry.state}, {size(entry.bytes)})")
    say(f"{len(gone)} removed, {size(sum(e.bytes for e in gone))} freed")


def _open(folder: Path | None) -> Store:
    from stillroom.run import machine as machines
    from stillroom.run.options import Machine

    return machines.store(Machine(store=folder))
