"""Hostile input through the real command: exit code 2, one line that says what and what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from end_to_end.worlds import World, flip, listing, png, setting
from stillroom.cli import run

Case = Callable[[World], list[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return World.first(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: tuple[Path, Path], tmp_path: Path) -> World:
    return World(tmp_path, *made)


def kept(world: World) -> dict[str, tuple[int, int] | None]:
    """All but the store; the time of a folder tells only that a file came and went."""
    found = {k: v for k, v in listing(world.tmp).items() if not k.startswith("store")}
    return {k: None if (world.tmp / k).is_dir() else v for k, v in found.items()}


def refused(world: World, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused and leave everything as it was; returns the line."""
    before = kept(world)
    capsys.readouterr()
    code = run(argv)
    captured = capsys.readouterr()
    assert code == 2, captured
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: "), lines[0]
    assert captured.out == ""
    assert kept(world) == before
    assert not list(world.store.rglob("*.tmp"))
    return lines[0]


def files(root: Path, **blobs: bytes) -> Path:
    """Overwrite files of a class folder: `a__0_png=bytes` is a/0.png."""
    for name, blob in blobs.items():
        part, _, rest = name.partition("__")
        (root / part / rest.replace("_", ".")).write_bytes(blob)
    return root


def parquet(root: Path, columns: dict[str, object]) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    root.mkdir()
    pq.write_table(pa.table(columns), root / "train.parquet")
    return str(root)


def paths_only(w: World) -> list[str]:
    rows = [{"bytes": None, "path": "/etc/passwd"}] * 4
    return w.dm(data=parquet(w.tmp / "p", {"image": rows, "label": [0, 0, 1, 1]}))


def mismatch(w: World) -> list[str]:
    w.folder({"a": 2, "b": 2}, "photos/train")
    w.folder({"a": 1, "c": 1}, "photos/test")
    return w.dm(data=str(w.tmp / "photos"))


def spoil(w: World, **blobs: bytes) -> list[str]:
    return w.dm(data=str(files(w.folder({"a": 3, "b": 3}), **blobs)))


DATA: dict[str, tuple[Case, str]] = {
    "missing folder": (lambda w: w.dm(data=str(w.tmp / "no/photos")), "no such folder"),
    "empty folder": (lambda w: w.dm(data=str(w.folder({}))), "no class folders"),
    "empty name": (lambda w: w.dm(data=""), "data='' is empty"),
    "a file": (lambda w: w.dm(data=str(w.base / "run.json")), "is a file; pass the folder"),
    "empty class": (lambda w: w.dm(data=str(w.folder({"a": 3, "b": 0}))), "class 'b' has no image"),
    "one image a class": (
        lambda w: w.dm(data=str(w.folder({"a": 1, "b": 1}))),
        "class 'a' has 1 image, too few to split",
    ),
    "corrupt jpeg": (lambda w: spoil(w, a__1_jpg=b"\xff\xd8\xff\xe0junk"), "a/1.jpg: not a read"),
    "truncated png": (lambda w: spoil(w, b__0_png=png(3, 64)[:900]), "b/0.png: not a read"),
    "text as png": (lambda w: spoil(w, a__0_png=b"hello"), "a/0.png: not a readable image"),
    "unknown name": (lambda w: w.dm(data="cifr10"), "did you mean 'cifar10'?"),
    "unknown user": (lambda w: w.dm(data="~nosuchuser/x"), "is no usable path"),
    "name too long": (lambda w: w.dm(data="x" * 5000), "is no usable path (File name too long)"),
    "bad hub name": (lambda w: w.dm(data="hf:a b"), "not of the form hf:owner/name"),
    "classes differ": (mismatch, "the classes of train and test differ in 'b', 'c'"),
    "parquet without labels": (
        lambda w: w.dm(data=parquet(w.tmp / "p", {"image": [png(0)] * 4, "x": [0, 0, 1, 1]})),
        "no label column; needs one of label",
    ),
    "parquet with paths": (paths_only, "holds a path but no image bytes; embed them"),
    "size 3": (lambda w: w.dm("--size", "3"), "--size=3: Input should be greater than or"),
    "size 99999": (lambda w: w.dm("--size", "99999"), "--size=99999: Input should be less than"),
    "size abc": (lambda w: w.dm("--size", "abc"), "--size: 'abc' is not a whole number"),
    "val 1.0": (lambda w: w.dm("--val", "1.0"), "--val=1.0: Input should be less than 1"),
    "val of tiny classes": (
        lambda w: w.dm("--val", "0.1", data=str(w.folder({"a": 3, "b": 3}))),
        "val=0.1 carves no image from classes this small; raise val",
    ),
    "normalise unknown": (lambda w: w.dm("--normalise", "cifar"), "did you mean 'cifar10'?"),
    "wrong channels": (
        lambda w: w.dm("--normalise", "cifar10"),
        "has 3 channel(s) but the images have 1; use --normalise fitted",
    ),
    "zca and constants": (
        lambda w: w.dm("--zca", "--normalise", "half"),
        "zca whitens raw pixels, so it excludes normalise='half'; drop one",
    ),
}


def other_key(w: World) -> list[str]:
    shutil.copytree(w.base, w.out)
    return w.dm("--steps", "4")


def foreign_files(w: World) -> list[str]:
    w.out.mkdir()
    (w.out / "thesis.tex").write_text("years of work")
    return w.dm("--force")


def damaged_out(w: World) -> list[str]:
    shutil.copytree(w.base, w.out)
    (w.out / "data.safetensors").unlink()
    return w.dm("--keep", "2")


def own_files(*names: str, flags: tuple[str, ...] = ("--force",)) -> Case:
    """A set in whose folder a person keeps something; then its run with --force."""

    def case(w: World) -> list[str]:
        shutil.copytree(w.base, w.out)
        for name in names:
            (w.out / name).parent.mkdir(exist_ok=True)
            (w.out / name).write_text("years of work")
        return w.dm(*flags)

    return case


def own_meta(w: World) -> list[str]:
    w.out.mkdir()
    (w.out / "meta.json").write_text('{"format": "of my own"}')
    return w.dm("--force")


def copies(w: World, *flags: str) -> list[str]:
    """k-means where class b has one picture eight times."""
    root = w.folder({"a": 10, "b": 10})
    for path in (root / "b").iterdir():
        path.write_bytes(png(0))
    line = ["distill", "k-means", "--data", str(root), "--ipc", "2", "--quiet", "--threads", "1"]
    return [*line, "--store", str(w.store), "--out", str(w.out), *flags]


def wrong_net(w: World) -> list[str]:
    (w.tmp / "hostile_net.py").write_text(
        "from torch import nn\n"
        "def Wrong(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))\n"
    )
    sys.path.insert(0, str(w.tmp))
    sys.dont_write_bytecode, old = True, sys.dont_write_bytecode
    try:
        sys.modules.pop("hostile_net", None)
        __import__("hostile_net")
    finally:
        sys.dont_write_bytecode = old
        sys.path.remove(str(w.tmp))
    return w.dm("--arch", "hostile_net:Wrong")


def named(w: World) -> Path:
    """A class folder with the ten classes of digits."""
    return w.folder({str(i): 2 for i in range(10)})


FLAGS: dict[str, tuple[Case, str]] = {
    "ipc 0": (lambda w: w.dm(ipc="0"), "ipc: Input should be greater than or equal to 1 (got 0)"),
    "ipc -1": (lambda w: w.dm(ipc="-1"), "greater than or equal to 1 (got -1)"),
    "ipc 2.5": (lambda w: w.dm(ipc="2.5"), "--ipc: '2.5' is not a whole number"),
    "ipc abc": (lambda w: w.dm(ipc="abc"), "--ipc: 'abc' is not a whole number"),
    "ipc of 5000 digits": (lambda w: w.dm(ipc="9" * 5000), "is not a whole number"),
    "ipc beyond a class": (
        lambda w: w.dm(ipc="5", data=str(w.folder({"a": 9, "b": 4}))),
        "ipc=5 but class 'b' has 3 training images; lower --ipc",
    ),
    "no ipc": (lambda w: ["distill", "dm", "--data", "digits"], "--ipc requires an argument"),
    "steps -1": (lambda w: w.dm("--steps", "-1"), "--steps: Input should be greater than"),
    "steps 2.5": (lambda w: w.dm("--steps", "2.5"), "--steps: '2.5' is not a whole number"),
    "lr 0": (lambda w: w.dm("--images.lr", "0"), "--images.lr: Input should be greater than 0"),
    "lr nan": (lambda w: w.dm("--images.lr", "nan"), "images.lr: Input should be a finite number"),
    "lr abc": (lambda w: w.dm("--images.lr", "abc"), "--images.lr: unable to convert"),
    "keep every:0": (lambda w: w.dm("--keep", "every:0"), "--keep 'every:0' must look like"),
    "keep every:999": (lambda w: w.dm("--keep", "every:999"), "--keep 999 lies outside the run"),
    "keep 999": (lambda w: w.dm("--keep", "999"), "--keep 999 lies outside the run's 3 steps"),
    "keep superscript": (lambda w: w.dm("--keep", "²"), "--keep '²' must look like"),
    "keep of 5000 digits": (lambda w: w.dm("--keep", "9" * 5000), "must look like 100,300"),
    "unknown flag": (lambda w: w.dm("--setps", "3"), "--setps. Did you mean --steps?"),
    "unknown method": (
        lambda w: ["distill", "dmm", "--data", "digits", "--ipc", "1"],
        "'dmm' is neither a method nor a recipe",
    ),
    "unknown verb": (lambda w: ["distil", "dm"], 'Did you mean "distill"?'),
    "device foo": (lambda w: w.dm("--device", "foo"), "use auto, cpu or cuda"),
    "device mps": (lambda w: w.dm("--device", "meta"), "'meta' is not supported; use cpu or cuda"),
    "threads 0": (lambda w: w.dm("--threads", "0"), "--threads=0: Input should be greater than"),
    "workers 0": (lambda w: w.dm("--workers", "0"), "--workers=0: Input should be greater than"),
    "tf32 on cpu": (
        lambda w: w.dm("--numerics", "tf32", "--device", "cpu"),
        "numerics=tf32 exists on CUDA only; use float32",
    ),
    "arch unknown": (lambda w: w.dm("--arch", "convnt1"), "did you mean 'convnet1'?"),
    "arch too deep": (lambda w: w.dm("--arch", "convnet9"), "for convnet9; use 'convnet1'"),
    "arch not importable": (
        lambda w: w.dm("--arch", "pkg.missing:Net"),
        "arch='pkg.missing:Net' does not import: ModuleNotFoundError",
    ),
    "arch with wrong output": (wrong_net, "for two images, not [2, 10]; let it take an argument"),
    "augment unknown word": (lambda w: w.dm("--augment", "dsa:colr"), "did you mean 'color'?"),
    "out is a file": (lambda w: w.dm("--out", str(w.base / "run.json")), "is a file; name a"),
    "out below a file": (
        lambda w: w.dm("--out", str(w.base / "run.json" / "x")),
        "no folder can be made in",
    ),
    "out with foreign files": (foreign_files, "holds files that are not a stillroom set"),
    "out with another run and a file": (
        own_files("todo.txt", "paper/a.tex", flags=("--force", "--seed", "5")),
        "holds 'paper/a.tex', which stillroom did not write and would delete; move it away, or",
    ),
    "out with this run and a file": (
        own_files("steps/2/mine", flags=("--keep", "2", "--force")),
        "holds 'steps/2/mine', which stillroom did not write",
    ),
    "out with a picture": (own_files("images/0000_0_0007.png"), "holds 'images/0000_0_0007.png'"),
    "out with metadata of another kind": (own_meta, "holds 'meta.json', which stillroom did not"),
    "out with another run": (other_key, "holds another run (distilled-"),
    "out is damaged": (damaged_out, "the set is incomplete; write it again with --force"),
    "out too long": (lambda w: w.dm("--out", "x" * 300), "no usable path (File name too long)"),
    "out is here": (lambda w: w.dm("--out", "."), "--out . "),
    "k-means of copies": (
        copies,
        "ipc=2 but class 'b' has 1 distinct training images, too few for k-means; lower --ipc or",
    ),
    "k-means centroids of copies": (
        lambda w: copies(w, "--centroids"),
        "ipc=2 but class 'b' has 1 distinct training images, too few for k-means; lower --ipc or",
    ),
    "init-from nonsense": (
        lambda w: w.dm("--init-from", str(w.tmp / "nothing")),
        "neither a set nor a class folder",
    ),
    "init-from other classes": (
        lambda w: w.dm("--init-from", str(w.base), data=str(w.folder({"a": 4, "b": 4}))),
        "its classes are not those of the data; first '0' against 'a'",
    ),
    "init-from too few": (
        lambda w: w.dm("--init-from", str(w.base), ipc="2"),
        "class '0' has 1 images, ipc=2 needs as many; lower --ipc",
    ),
    "init-from colour": (
        lambda w: w.dm("--init-from", str(named(w))),
        "colour images, but digits is grey",
    ),
    "store is a file": (
        lambda w: w.dm("--store", str(w.base / "run.json")),
        "is a file; name a folder with --store",
    ),
    "store below a file": (
        lambda w: w.dm("--store", str(w.base / "run.json" / "x")),
        "cannot be written (Not a directory)",
    ),
    "diverging": (
        lambda w: w.dm("--images.lr", "1e30", "--augment", "none"),
        "step 2: the loss is nan",
    ),
}
MINE = "benchmark: digits\nipc: 1\nmethod: {kind: distribution_matching}\narch: convnet1-w8\n"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(14)
)
RECIPES: dict[str, tuple[Case, str]] = {
    "missing": (lambda w: ["distill", str(w.tmp / "no.yaml")], "no such recipe file"),
    "nearly a name": (lambda w: ["distill", "dm/cifar10-ipc11"], "did you mean 'dm/cifar10-ipc1"),
    "a folder": (lambda w: ["distill", f"{w.tmp}/./."], "is neither a method nor a recipe"),
    "not yaml": (lambda w: w.recipe("a: [1, 2\nb: }"), "not readable as YAML"),
    "not text": (lambda w: w.recipe(b"\xff\xfe\x00"), "not readable as YAML"),
    "no such date": (lambda w: w.recipe(MINE + "seed: 2024-99-99\n"), "not readable as YAML"),
    "python in yaml": (lambda w: w.recipe("a: !!python/object/apply:os.system [id]"), "as YAML"),
    "a list": (lambda w: w.recipe("- 1\n- 2\n"), "a recipe must be a mapping of keys to values"),
    "empty": (lambda w: w.recipe(""), "a recipe must be a mapping"),
    "unknown key": (lambda w: w.recipe(MINE + "stepz: 3\n"), "stepz: unknown key"),
    "unknown inner key": (
        lambda w: w.recipe(MINE + "outer: {setps: 3}\n"),
        "outer.setps: unknown key; did you mean 'steps'?",
    ),
    "wrong type": (lambda w: w.recipe(MINE + "seed: [1]\n"), "seed: Input should be a valid"),
    "ipc 2.5": (lambda w: w.recipe(MINE, "ipc=2.5"), "ipc: Input should be a valid integer"),
    "ipc true": (lambda w: w.recipe(MINE, "ipc=true"), "ipc: Input should be a valid integer"),
    "unknown kind": (
        lambda w: w.recipe(MINE, "method.kind=distribution_machting"),
        "did you mean 'distribution_matching'?",
    ),
    "no kind": (lambda w: w.recipe(MINE, "method=3"), "method: must be a mapping with a kind"),
    "kind does not import": (
        lambda w: w.recipe(MINE, "method={kind: 'nowhere.at.all:Method'}"),
        "kind 'nowhere.at.all:Method' does not import (ModuleNotFoundError",
    ),
    "kind without a module": (lambda w: w.recipe(MINE, "method={kind: ':M'}"), "does not import"),
    "kind is no method": (
        lambda w: w.recipe(MINE, "method={kind: 'json:JSONDecoder'}"),
        "is not a finished subclass of stillroom.methods.base.Method",
    ),
    "kind is abstract": (
        lambda w: w.recipe(MINE, "method={kind: 'stillroom.methods.base:Method'}"),
        "is not a finished subclass",
    ),
    "nan": (lambda w: w.recipe(MINE, "outer.images.lr=.nan"), "lr: Input should be a finite"),
    "keep outside": (
        lambda w: w.recipe(MINE, "outer={steps: 3, keep: [9]}"),
        "outer.keep: step 9 lies outside the run's 3 steps",
    ),
    "keys are numbers": (lambda w: w.recipe("1: 2\n"), "keywords must be strings"),
    "override without =": (lambda w: w.recipe(MINE, "ipc"), "override 'ipc' must look like key"),
    "override not yaml": (lambda w: w.recipe(MINE, "ipc=[1"), "its value is not YAML"),
    "huge": (lambda w: w.recipe("#" * 2**21), "larger than 1 MiB, so not a file of stillroom"),
    "billion laughs": (lambda w: w.recipe(BOMB + MINE.replace("ipc: 1", "ipc: *o")), "ipc: Input"),
}


def soft(values: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["labels"] = torch.full((10, 10), values)

    return change


def replaced(name: str, value: object) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__setitem__(name, torch.as_tensor(value))


def nan_image(tensors: dict[str, torch.Tensor]) -> None:
    tensors["images"][3, 0, 1, 1] = float("nan")


def whitened(transform: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["zca.mean"], tensors["zca.transform"] = torch.zeros(64), transform

    return change


def inspecting(*changes: Callable[..., object]) -> Case:
    return lambda w: ["inspect", str(w.forged(*changes))]


def without(name: str) -> Case:
    def case(w: World) -> list[str]:
        copy = w.spoilt(name, lambda blob: blob)
        (copy / name).unlink()
        return ["inspect", str(copy)]

    return case


def linked(name: str, target: str, *verb: str) -> Case:
    """A file of the set is a link to a device."""

    def case(w: World) -> list[str]:
        copy = w.spoilt("meta.json", lambda blob: blob)
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(target)
        return [*verb, str(copy)]

    return case


def grown(tensors: dict[str, torch.Tensor]) -> None:
    """Ten images of 4096x4096 pixels, as 10 bytes say."""
    del tensors["images"]
    tensors["jpeg"], tensors["jpeg.ends"] = torch.zeros(10).byte(), torch.arange(1, 11)
    tensors["jpeg.shape"] = torch.tensor([10, 1, 4096, 4096])


def grow(meta: dict[str, Any]) -> None:
    del meta["tensors"]["images"]
    meta["storage"] = "jpeg"


def labelled(change: Callable[[Path], object], verb: str) -> Case:
    """A copy of the set that carries what nobody should."""

    def case(w: World) -> list[str]:
        copy = w.spoilt("meta.json", lambda blob: blob)
        (copy / "relabels").mkdir()
        change(copy / "relabels")
        return [verb, str(copy)]

    return case


def spoiling(name: str, change: Callable[[bytes], bytes]) -> Case:
    return lambda w: ["inspect", str(w.spoilt(name, change))]


NOTHING = lambda meta: None  # noqa: E731
ZCA = setting("preprocess", "zca", True)
SETS: dict[str, tuple[Case, str]] = {
    "no set": (lambda w: ["inspect", str(w.tmp / "none")], "no such set; a set is a folder"),
    "missing meta.json": (without("meta.json"), "no such set; a set is a folder with meta.json"),
    "missing tensors": (without("data.safetensors"), "no such file; the set is incomplete"),
    "truncated tensors": (spoiling("data.safetensors", lambda b: b[:-9]), "copy it again"),
    "no tensors": (spoiling("data.safetensors", lambda b: b""), "not a whole safetensors file"),
    "flipped bit in a tensor": (spoiling("data.safetensors", flip(-5)), "SHA-256 does not match"),
    "flipped bit in meta.json": (
        spoiling("meta.json", lambda b: b.replace(b'"digits"', b'"digitz"')),
        "was altered or damaged (its digest does not match)",
    ),
    "meta.json is a list": (spoiling("meta.json", lambda b: b"[]"), "not the metadata of a still"),
    "meta.json cut off": (spoiling("meta.json", lambda b: b[:99]), "is the file cut off?"),
    "meta.json is a device": (
        linked("meta.json", "/dev/null", "inspect"),
        "meta.json: not a regular file (a device or a pipe?)",
    ),
    "jpeg that is too small for its images": (
        inspecting(grow, grown),
        "jpeg.shape [10, 1, 4096, 4096] claims more than 10 bytes of JPEG can hold; not read",
    ),
    "meta.json of 5000 digits": (
        spoiling("meta.json", lambda b: b.replace(b'"tiles": 1', b'"tiles": ' + b"9" * 5000)),
        "not readable as JSON",
    ),
    "label_kind unknown": (
        inspecting(setting("label_kind", "fuzzy")),
        "'fuzzy' is unknown; it must be one of hard, probs, logits",
    ),
    "format of the future": (
        inspecting(setting("format", 7)),
        "format 7, this version reads 1; update stillroom",
    ),
    "storage unknown": (inspecting(setting("storage", "int4")), "storage 'int4' is unknown"),
    "labels do not sum to 1": (
        inspecting(setting("label_kind", "probs"), soft(0.2)),
        "must be >= 0 and sum to 1 in every row",
    ),
    "labels of eight bits": (
        inspecting(NOTHING, replaced("labels", torch.zeros(10).to(torch.float8_e4m3fn))),
        "is of torch.float8_e4m3fn; not read",
    ),
    "nan images": (inspecting(NOTHING, nan_image), "images hold NaN or infinite values"),
    "nan in meta.json": (inspecting(setting("lr", float("nan"))), "NaN is not a number"),
    "negative rate": (inspecting(setting("lr", -1)), "lr=-1 must be positive"),
    "no tile": (inspecting(setting("tiles", 0)), "tiles=0"),
    "classes twice": (inspecting(setting("classes", 1, "0")), "two classes have the same name"),
    "class of 301 letters": (inspecting(setting("classes", 0, "x" * 301)), "1 to 300 letters each"),
    "class is no text": (inspecting(setting("classes", 0, "\ud800")), "is not valid text"),
    "class is a number": (inspecting(setting("classes", 0, 5)), "class names must be"),
    "of_class out of range": (
        inspecting(NOTHING, replaced("of_class", list(range(1, 11)))),
        "of_class must lie in 0..9",
    ),
    "hard labels out of range": (
        inspecting(NOTHING, replaced("labels", [-1] * 10)),
        "hard labels must lie in 0..9",
    ),
    "std 0": (
        inspecting(setting("preprocess", "std", [0.0])),
        "preprocess.std must be at least 1e-6",
    ),
    "zca without tensors": (inspecting(ZCA), "the ZCA tensors are absent or not [64]"),
    "zca of integers": (
        inspecting(ZCA, whitened(torch.eye(64).long())),
        "the ZCA tensors must be finite float32 numbers",
    ),
    "zca not invertible": (
        inspecting(ZCA, whitened(torch.zeros(64, 64))),
        "cannot be inverted, so it has no pixels to show",
    ),
    "labels that are none": (
        labelled(lambda folder: (folder / "relabels.json").write_text("[]"), "inspect"),
        "relabels.json: not the manifest of stored labels",
    ),
    "labels that are a link": (
        labelled(lambda folder: (folder.rmdir(), folder.symlink_to("/etc")), "inspect"),
        "set/relabels: a symbolic link, which no labels have",
    ),
    "labels without end": (
        labelled(lambda folder: (folder / "relabels.json").symlink_to("/dev/zero"), "inspect"),
        "relabels.json: a symbolic link",
    ),
    "labels that are none, in a page": (
        labelled(lambda folder: (folder / "relabels.json").write_text("{}"), "report"),
        "relabels.json: not the manifest of stored labels",
    ),
    "labels by nobody": (
        lambda w: ["prepare", "relabels", str(w.base), "--store", str(w.store)],
        "edc@1 needs teachers and the set names none",
    ),
    "labels in no bytes": (
        lambda w: ["prepare", "relabels", str(w.base), "--store", str(w.store), "--budget", "3 pt"],
        "'3 pt' is no number of bytes; write 30MB",
    ),
    "export over files": (
        lambda w: ["export", str(w.base), "--to", "folder", "--out", str(w.base)],
        "exists and is not empty; name a new folder",
    ),
    "export form": (
        lambda w: ["export", str(w.base), "--to", "zip", "--out", str(w.out)],
        'Invalid value "zip" for --to',
    ),
    "export to nowhere": (
        lambda w: ["export", str(w.base), "--to", "tensors", "--out", str(w.base / "run.json/x")],
        "run.json/x: cannot be written",
    ),
    "unknown recipe": (lambda w: ["recipes", "show", "dm/cifr10-ipc1"], "did you mean 'dm/cifar10"),
}


def with_ledger(text: str) -> Case:
    def case(w: World) -> list[str]:
        copy = w.spoilt("meta.json", lambda blob: blob)
        (copy / "records.jsonl").write_text(text)
        return ["report", str(copy), "--out", str(w.tmp / "page.html")]

    return case


def in_store(name: str, change: Callable[[Path], object], *verb: str) -> Case:
    """Damage a file of the base set in a copy of the store, then run (by default) its run again.

    `data/NAME` is a file of the first cached data instead.
    """

    def case(w: World) -> list[str]:
        store = w.own_store()
        data = sorted(store.glob("data-*"))[0]
        change(data / name[5:] if name.startswith("data/") else w.artefact() / name)
        return [*verb, "--store", str(store)] if verb else w.dm("--keep", "2")

    return case


def flip_file(path: Path) -> None:
    path.write_bytes(flip(-3)(path.read_bytes()))


def damaged_cache(w: World) -> list[str]:
    store = w.own_store()
    for path in store.glob("data-*/train.images.u8"):
        flip_file(path)
    return w.evaluate(w.forged(not_embedded))


# data that do not come with the package: no copy of them can be made anew
not_embedded = setting("data", "name", "mine")


def damaged_snapshot(w: World) -> list[str]:
    """A run with a snapshot, stopped, and one bit of the snapshot's header flipped."""
    w.own_store()
    whole = w.artefact()
    part = whole.with_suffix(".part")
    whole.rename(part)
    (part / "stage.json").unlink()
    (part / "0000" / "done").unlink()
    (part / "0000" / "snapshot.safetensors").write_bytes(b"\x00" * 64)
    return w.dm("--keep", "2")


STORES: dict[str, tuple[Case, str]] = {
    "ledger cut off": (with_ledger('{"benchmark": "dig'), "records.jsonl:1: not a line of JSON"),
    "ledger not json": (with_ledger("\nhello\n"), "records.jsonl:1: not a line of JSON"),
    "ledger lacks a field": (with_ledger("{}\n"), "a record lacks the field 'arch'"),
    "stage.json is not JSON": (
        in_store("stage.json", lambda p: p.write_text("{")),
        "its manifest is not readable; remove it with: stillroom store gc",
    ),
    "flipped byte in a set": (
        in_store("steps/3/data.safetensors", flip_file),
        "steps/3/data.safetensors was altered or damaged; remove it with: stillroom store gc",
    ),
    "missing file": (
        in_store("metrics.jsonl", Path.unlink),
        "metrics.jsonl is missing; remove it with: stillroom store gc",
    ),
    "damaged snapshot": (damaged_snapshot, "damaged; remove the unfinished run with: stillroom st"),
    "damaged cached data": (damaged_cache, "pass --data to read it again (passed over: "),
    "verify data": (
        in_store("data/train.labels.i64", flip_file, "store", "verify"),
        "train.labels.i64: was altered",
    ),
    "verify without manifest": (
        in_store("stage.json", Path.unlink, "store", "verify"),
        "its manifest is not readable",
    ),
    "store verify of a file": (
        lambda w: ["store", "verify", "--store", str(w.base / "run.json")],
        "is a file; name a folder with --store",
    ),
    "judge other classes": (
        lambda w: w.evaluate(w.base, "--data", str(w.folder({"a": 3, "b": 3}))),
        "its classes are not those of photos ('0' against 'a'); the order counts too",
    ),
    "judge other size": (
        lambda w: w.evaluate(w.base, "--data", "digits", "--size", "16"),
        "its images are [1, 8, 8], the data [1, 16, 16]; read the data with --size 8",
    ),
    "judge a step not kept": (
        lambda w: w.evaluate(w.base, "--steps", "7"),
        "holds no set of step 7; it holds 2, 3",
    ),
    "judge no number": (lambda w: w.evaluate(w.base, "--steps", "²"), "must be last, all, or"),
    "judge by unknown protocol": (
        lambda w: w.evaluate(w.base, "--protocol", "quik"),
        "did you mean 'quick@1'?",
    ),
    "judge with 0 seeds": (
        lambda w: w.evaluate(w.base, "--seeds", "0"),
        "seeds: Input should be greater than or equal to 1",
    ),
    "judge a size without data": (
        lambda w: w.evaluate(w.base, "--size", "16"),
        "--size is about data that are read again; name them: --data",
    ),
    "judge against nothing": (
        lambda w: w.evaluate(w.base, "--against", str(w.tmp / "nowhere")),
        "nowhere: no such set",
    ),
    "judge other split": (
        lambda w: w.evaluate(w.base, "--data", "digits", "--split-seed", "5"),
        "it was made of the same images read otherwise (split_seed 0 against 5)",
    ),
    "judge into a wrong ledger": (
        lambda w: w.evaluate(w.base, "--records", str(w.base / "data.safetensors")),
        "data.safetensors:1: not text in UTF-8",
    ),
    "reproduce nothing": (lambda w: ["reproduce", "dm/nothing"], "cell='dm/nothing' is unknown"),
    "reproduce a table of a cell": (
        lambda w: ["reproduce", "dm/cifar10-ipc10", "--ledger", "x"],
        "--ledger writes the table of all cells; leave CELL out",
    ),
    "judge nothing": (lambda w: ["evaluate"], "evaluate needs a SET folder, or full:DATA"),
    "judge full nothing": (lambda w: w.evaluate("full:nope"), "data='nope' is neither a folder"),
    "judge without its data": (
        lambda w: w.evaluate(w.forged(not_embedded), "--store", str(w.tmp / "empty")),
        "the store has no decoded copy of the data",
    ),
    "judge hostile data": (
        lambda w: w.evaluate(w.forged(setting("data", "content", "../../etc"))),
        "has no content digest; pass --data",
    ),
    "report nothing": (lambda w: ["report"], "requires an argument"),
}
ALL = {
    f"{group}: {name}": case
    for group, cases in (
        ("data", DATA),
        ("flags", FLAGS),
        ("recipe", RECIPES),
        ("set", SETS),
        ("store", STORES),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", ALL)
def test_refused_in_one_line(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    case, fragment = ALL[name]
    if name == "store: judge without its data":
        (world.tmp / "empty").mkdir()
    argv = case(world)
    if name == "flags: out is here":
        (world.tmp / "cwd").mkdir()
        old = os.getcwd()
        os.chdir(world.tmp / "cwd")
        try:
            line = refused(world, argv, capsys)
        finally:
            os.chdir(old)
    else:
        line = refused(world, argv, capsys)
    assert fragment in line


def test_device_that_is_absent(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    line = refused(world, world.dm("--device", "cuda"), capsys)
    assert "device='cuda' but this machine has no such GPU; use --device cpu" in line


@pytest.mark.parametrize("place", ["store", "out"])
def test_read_only_folder(place: str, world: World, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Root may write anywhere, so the kernel's answer is simulated."""
    folder = world.tmp / "locked"
    folder.mkdir()

    def refuse(path: object, *rest: object, call: Any = os.open, **named: object) -> Any:
        if str(path).startswith(f"{folder}{os.sep}"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return call(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "mkdir", partial(refuse, call=os.mkdir))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(folder)))
    flag = ["--store", str(folder)] if place == "store" else ["--out", str(folder / "set")]
    line = refused(world, world.dm(*flag), capsys)
    assert ("cannot be written (Permission denied)" if place == "store" else "no folder can be made"
            ) in line  # fmt: skip


@pytest.mark.parametrize("what", ["distill", "publish", "export", "evaluate"])
def test_full_disk(what: str, world: World, capsys: pytest.CaptureFixture[str],
                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    world.own_store()
    copy = world.spoilt("meta.json", lambda blob: blob)
    argv = {
        "distill": world.dm("--seed", "9"),
        "publish": world.dm("--keep", "2"),
        "export": ["export", str(copy), "--to", "tensors", "--out", str(world.out)],
        "evaluate": world.evaluate(copy),
    }[what]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(world, argv, capsys)
    assert "the disk is full; free space or choose another folder" in line
    monkeypatch.undo()
    assert run(argv) == 0


def test_out_of_memory(world: World, capsys: pytest.CaptureFixture[str],
                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from stillroom.methods.distribution_matching import DistributionMatching

    def greedy(*rest: object) -> None:
        raise MemoryError

    monkeypatch.setattr(DistributionMatching, "start", greedy)
    line = refused(world, world.dm("--seed", "8"), capsys)
    assert "out of memory; lower --ipc, --batch-real or --size (see --plan)" in line


@pytest.mark.parametrize("what", ["distill", "judge", "judge a foreign set"])
def test_network_that_no_memory_holds(what: str, world: World, capsys: pytest.CaptureFixture[str],
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Refused by its name: 28 MB of weights, gradients and momentum where 1 MiB is free."""
    from stillroom.nets import zoo

    huge = "convnet2-w512-np"
    argv = {
        "distill": lambda: world.dm("--arch", huge),
        "judge": lambda: world.evaluate(world.base, "--arch", huge),
        "judge a foreign set": lambda: world.evaluate(world.forged(setting("arch", huge))),
    }[what]()
    monkeypatch.setattr("stillroom.runtime.available_memory", lambda device: 2**20)
    made: list[str] = []
    real = zoo.build

    def build(name: str, *shape: int) -> torch.nn.Module:
        net = real(name, *shape)
        made.extend(p.device.type for p in net.parameters())
        return net

    monkeypatch.setattr(zoo, "build", build)
    line = refused(world, argv, capsys)
    assert f"arch={huge} needs at least 0.0 GiB of memory on cpu and 0.0 GiB are free; " in line
    assert line.endswith("name a smaller network with --arch")
    assert set(made) == {"meta"}


def test_divergence_is_diagnosed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(world, world.dm("--images.lr", "1e30", "--augment", "none"), capsys)
    assert "lower --images.lr, now 1e+30" in line
    assert "largest pixel in network space" in line


def test_names_of_classes_are_text(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """`../x`, markup and escape codes are shown, never followed, and never reach the terminal."""
    names = ["../../x", "<script>", "[red]", "\x1b[31m", "a\nb", "é"]
    copy = world.forged(lambda meta: meta.update(classes=[*names, *meta["classes"][6:]]))
    assert run(["inspect", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "../../x, <script>, [red], \\x1b[31m" in shown
    assert "\x1b" not in shown
    assert run(["export", str(copy), "--to", "folder", "--out", str(world.out)]) == 0
    pictures = sorted(p.relative_to(world.out).as_posix() for p in world.out.rglob("*.png"))
    assert pictures[:2] == ["images/0000_x_0000.png", "images/0001_script_0000.png"]
    assert len(pictures) == 10
    assert not (world.tmp / "x").exists()


@pytest.mark.parametrize("papers", [5, None, "zhao2023dm", [["a"]], [{}], ["os:system"]])
def test_hostile_citations(papers: object, world: World,
                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert run(["cite", str(world.forged(setting("provenance", "papers", papers)))]) == 0
    assert capsys.readouterr().out.startswith("% ")


@pytest.mark.parametrize("step", ["abc", None, [], 1.5, -3, True, 10**30])
def test_hostile_step(step: object, world: World) -> None:
    from stillroom.run.publish import steps_of

    copy = world.forged(setting("provenance", "step", step))
    assert list(steps_of(copy)) == [0, 2]


def test_metadata_is_never_imported(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Import paths in a foreign set are text: nothing of them runs."""
    marker = world.tmp / "evil_module.py"
    marker.write_text("raise SystemExit('imported')\n")
    sys.path.insert(0, str(world.tmp))
    try:
        copy = world.forged(
            lambda meta: meta.update(
                arch="evil_module:Net",
                provenance={**meta["provenance"], "recipe": {"method": {"kind": "evil_module:M"}}},
            )
        )
        assert run(world.evaluate(copy)) == 0
        records = [json.loads(x) for x in (copy / "records.jsonl").read_text().splitlines()]
        assert records[-1]["arch"] == "convnet2", "that of the packaged rows of digits"
        assert run(["inspect", str(copy)]) == 0
        shutil.rmtree(copy)
        augmented = world.forged(setting("augment", "evil_module:augment"))
        assert run(world.evaluate(augmented, "--baselines")) in (0, 2)
    finally:
        sys.path.remove(str(world.tmp))
    assert "evil_module" not in sys.modules


def test_gc_removes_only_what_is_ours(world: World) -> None:
    """`store gc --everything` in a folder that somebody also keeps photographs in."""
    store = world.own_store()
    (store / "photos").mkdir()
    (store / "photos" / "a.png").write_bytes(png(0))
    (store / "thesis.part").mkdir()
    assert run(["store", "gc", "--everything", "--store", str(store)]) == 0
    left = sorted(p.name for p in store.iterdir() if p.name != ".locks")
    assert left == ["photos", "thesis.part"]
    assert list((store / ".locks").iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (["distill", "dm", "--data", "nowhere", "--ipc", "1"], b"is neither a folder"),
        (["distill", "dmm", "--data", "digits", "--ipc", "1"], b"did you mean 'dm'?"),
        (["evaluate", b"\xff\xfe"], b"no such set"),
        (["inspect", "/"], b": no such set; a set is a folder with meta.json"),
        (["recipes", "show", "x"], b"recipe 'x' is unknown"),
    ],
    ids=["data", "method", "bytes", "root", "recipe"],
)
def test_as_a_process(argv: list[str | bytes], fragment: bytes, tmp_path: Path) -> None:
    """The same through a process of its own, in an ASCII terminal."""
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "STILLROOM_STORE": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-m", "stillroom", *argv], capture_output=True, env=env, check=False
    )
    assert done.returncode == 2, done
    assert done.stdout == b""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(b"error: ")
    assert fragment in lines[0]
    assert list(tmp_path.rglob("*.tmp")) == []
